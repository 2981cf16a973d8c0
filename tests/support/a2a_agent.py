"""An A2A agent for tests: what it does is in the words of the message."""

import asyncio
from uuid import uuid4

from a2a.helpers import new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.context import ServerCallContext
from a2a.server.events import EventQueue
from a2a.server.tasks import TaskUpdater
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Message,
    Part,
    Role,
    SendMessageRequest,
    TaskState,
)

from processor.a2a.task_store import OWNER_STATE

CARD = AgentCard(
    name="words",
    description="Does what the message says.",
    version="1",
    supported_interfaces=[
        AgentInterface(url="http://127.0.0.1/", protocol_binding="JSONRPC", protocol_version="1.0")
    ],
    capabilities=AgentCapabilities(streaming=True, push_notifications=True),
    default_input_modes=["text/plain"],
    default_output_modes=["text/plain"],
    skills=[AgentSkill(id="words", name="words", description="does words", tags=["test"])],
)


class WordsAgent(AgentExecutor):
    """Each word of a message is done in its turn; see `_do`. `runs` counts the messages."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.cancelled: list[str] = []
        self.go_on = asyncio.Event()
        """Awaited by the word `wait`."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.task_id is not None
        assert context.context_id is not None
        assert context.message is not None
        self.runs.append(context.message.message_id)
        if context.current_task is None:  # as the SDK's own handler asks
            await event_queue.enqueue_event(new_task_from_user_message(context.message))
        updater = TaskUpdater(event_queue, context.task_id, context.context_id)
        await updater.start_work()
        for nth, word in enumerate(context.get_user_input().split()):
            await self._do(word, nth, updater)

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.task_id is not None
        self.cancelled.append(context.task_id)

    async def _do(self, word: str, nth: int, updater: TaskUpdater) -> None:
        said = updater.new_agent_message([new_text_part(f"{word}?")])
        match word:
            case "ask":
                await updater.requires_input(said)
            case "auth":
                await updater.requires_auth(said)
            case "done":
                await updater.complete(said)
            case "reject":
                await updater.reject(said)
            case "give-up":
                await updater.failed(said)
            case "break":
                raise RuntimeError("the agent is broken")
            case "wait":
                await self.go_on.wait()
            case "more":
                await updater.add_artifact([new_text_part(f"part {nth}")], "list", append=True)
            case _:
                await updater.add_artifact([new_text_part(word)], "list", name="a list")


def user_message(text: str, *, task_id: str = "", message_id: str | None = None) -> Message:
    return Message(
        message_id=message_id or str(uuid4()),
        task_id=task_id,
        role=Role.ROLE_USER,
        parts=[Part(text=text)],
    )


def request(text: str, *, task_id: str = "", message_id: str | None = None) -> SendMessageRequest:
    return SendMessageRequest(message=user_message(text, task_id=task_id, message_id=message_id))


def caller(owner: str = "alice") -> ServerCallContext:
    return ServerCallContext(state={OWNER_STATE: owner})


def state_name(state: TaskState) -> str:
    name: str = TaskState.Name(state)
    return name.removeprefix("TASK_STATE_")
