"""Saving a task is one command that decides; it is refused if another one was first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from a2a.server.cluster import ConcurrentTaskModificationError, TaskVersion
from a2a.types import (
    Artifact,
    ListTasksRequest,
    Part,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
)
from a2a.utils.errors import (
    InvalidAgentResponseError,
    InvalidParamsError,
    UnsupportedOperationError,
)

from processor.a2a import FlowTaskStore
from processor.client import CurrentFlows, FlowClient
from processor.testing.fake.taskflow import TaskflowFake
from tests.support.a2a_agent import caller, user_message

ALICE = caller()
TASK = "6f1f3a52-0000-4000-8000-000000000001"


@asynccontextmanager
async def task_store(fake: TaskflowFake) -> AsyncIterator[FlowTaskStore]:
    async with (
        FlowClient(fake.settings, session="a2a/words") as client,
        CurrentFlows(fake.settings) as table,
    ):
        yield FlowTaskStore(client, table, "words")


def task_in(state: TaskState, *, task_id: str = TASK, context_id: str = "c", at: int = 0) -> Task:
    task = Task(
        id=task_id,
        context_id=context_id,
        status=TaskStatus(state=state),
        history=[user_message("please", task_id=task_id, message_id=f"m {task_id}")],
    )
    if at:
        task.status.timestamp.FromSeconds(at)
    return task


async def save(store: FlowTaskStore, task: Task, version: TaskVersion) -> TaskVersion:
    return await store.save(task, prev_version=version, context=ALICE)


async def test_of_two_first_saves_one_counts(taskflow_fake: TaskflowFake) -> None:
    async with task_store(taskflow_fake) as first, task_store(taskflow_fake) as second:
        results = await asyncio.gather(
            save(first, task_in(TaskState.TASK_STATE_WORKING), TaskVersion.MISSING),
            save(second, task_in(TaskState.TASK_STATE_SUBMITTED), TaskVersion.MISSING),
            return_exceptions=True,
        )
    refused = [result for result in results if isinstance(result, BaseException)]
    assert [type(error) for error in refused] == [ConcurrentTaskModificationError]


async def test_of_two_saves_from_one_version_one_counts(taskflow_fake: TaskflowFake) -> None:
    async with task_store(taskflow_fake) as first, task_store(taskflow_fake) as second:
        version = await save(first, task_in(TaskState.TASK_STATE_WORKING), TaskVersion.MISSING)
        left, right = (task_in(TaskState.TASK_STATE_WORKING) for _ in range(2))
        left.history.append(user_message("left"))
        right.history.append(user_message("right"))
        await taskflow_fake.settle()
        results = await asyncio.gather(
            save(first, left, version), save(second, right, version), return_exceptions=True
        )
        found = await first.get(TASK, ALICE)
    errors = [type(result) for result in results if isinstance(result, BaseException)]
    assert errors == [ConcurrentTaskModificationError]
    assert found is not None
    assert found.task == (left if isinstance(results[0], TaskVersion) else right)
    assert found.version in results


async def test_another_change_of_the_flow_is_no_conflict(taskflow_fake: TaskflowFake) -> None:
    async with task_store(taskflow_fake) as store:
        task = task_in(TaskState.TASK_STATE_WORKING)
        version = await save(store, task, TaskVersion.MISSING)
        update = {"kind": "update_state", "flow_id": TASK, "issued_by": store.session}
        await store.send({**update, "patch": {"note": "an operator was here"}})
        task.history.append(user_message("more"))
        await save(store, task, version)
        found = await store.get(TASK, ALICE)
    assert found is not None
    assert found.task == task


async def test_a_version_that_is_not_the_newest_is_refused(taskflow_fake: TaskflowFake) -> None:
    async with task_store(taskflow_fake) as store:
        task = task_in(TaskState.TASK_STATE_WORKING)
        version = await save(store, task, TaskVersion.MISSING)
        task.metadata.update({"n": 1})
        await save(store, task, version)
        for stale in (version, TaskVersion.MISSING, TaskVersion(9)):
            with pytest.raises(ConcurrentTaskModificationError):
                await save(store, task, stale)
        with pytest.raises(ConcurrentTaskModificationError):
            await save(store, task_in(TaskState.TASK_STATE_WORKING, task_id="gone"), version)


async def test_a_cancel_counts_from_any_version_unless_the_task_has_ended(
    taskflow_fake: TaskflowFake,
) -> None:
    async with task_store(taskflow_fake) as store:
        await save(store, task_in(TaskState.TASK_STATE_WORKING), TaskVersion.MISSING)
        cancelled = task_in(TaskState.TASK_STATE_CANCELED)
        await save(store, cancelled, TaskVersion(77))
        found = await store.get(TASK, ALICE)
        assert found is not None
        assert found.task.status.state == TaskState.TASK_STATE_CANCELED
        with pytest.raises(ConcurrentTaskModificationError):
            await save(store, cancelled, found.version)


async def test_a_saver_that_is_gone_halfway_leaves_a_draft_that_is_completed(
    taskflow_fake: TaskflowFake,
) -> None:
    task = task_in(TaskState.TASK_STATE_WORKING)
    task.artifacts.append(Artifact(artifact_id="a", parts=[Part(text="x")]))
    async with task_store(taskflow_fake) as store:
        await store.send(
            {
                "kind": "create_managed",
                "flow_id": TASK,
                "issued_by": store.session,
                "controller_id": "a2a/words",
                "goal": "please",
                "requester_origin": store.origin(ALICE),
                "state_json": {"context_id": "c"},
            }
        )
        assert await store.get(TASK, ALICE) is None
        await save(store, task, TaskVersion.MISSING)
        found = await store.get(TASK, ALICE)
    assert found is not None
    assert found.task == task


@pytest.mark.parametrize("megabytes", [0.2, 1.5])
async def test_what_is_larger_than_a_flow_goes_into_steps(
    taskflow_fake: TaskflowFake, megabytes: float
) -> None:
    task = task_in(TaskState.TASK_STATE_WORKING)
    raw = bytes(range(256)) * int(megabytes * 4096)
    task.artifacts.append(Artifact(artifact_id="a", parts=[Part(raw=raw), Part(text='"\\ü' * 9)]))
    task.history.append(user_message("ü" * 300_000))
    async with task_store(taskflow_fake) as store:
        await save(store, task, TaskVersion.MISSING)
        found = await store.get(TASK, ALICE)
    assert found is not None
    assert found.task == task
    assert (await taskflow_fake.verify()).ok


async def test_many_small_messages_leave_the_state_before_it_is_full(
    taskflow_fake: TaskflowFake,
) -> None:
    task = task_in(TaskState.TASK_STATE_WORKING)
    task.history.extend(user_message("x" * 2_000, message_id=f"m{n}") for n in range(300))
    async with task_store(taskflow_fake) as store:
        version = await save(store, task, TaskVersion.MISSING)
        task.history.extend(user_message("y" * 2_000, message_id=f"n{n}") for n in range(300))
        await save(store, task, version)
        found = await store.get(TASK, ALICE)
    assert found is not None
    assert found.task == task


async def test_what_the_contract_has_no_numbers_for_is_kept(taskflow_fake: TaskflowFake) -> None:
    task = task_in(TaskState.TASK_STATE_WORKING)
    task.metadata.update({"large": 1e300, "precise": 0.1, "negative": -(2.0**60)})
    async with task_store(taskflow_fake) as store:
        await save(store, task, TaskVersion.MISSING)
        found = await store.get(TASK, ALICE)
    assert found is not None
    assert found.task == task


async def test_a_task_of_more_steps_than_a_flow_has_is_refused(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKFLOW_FLOW_STEPS_MAX", "3")
    fake = TaskflowFake(taskflow_fake.settings.model_copy(update={"flow_steps_max": 3}))
    task = task_in(TaskState.TASK_STATE_WORKING)
    task.artifacts.extend(Artifact(artifact_id=f"{n}", parts=[Part(text=f"{n}")]) for n in range(5))
    with fake.connected():
        async with task_store(fake) as store:
            with pytest.raises(InvalidAgentResponseError, match="too_many_steps"):
                await save(store, task, TaskVersion.MISSING)


async def test_a_chunk_adds_its_own_step_and_nothing_else(taskflow_fake: TaskflowFake) -> None:
    task = task_in(TaskState.TASK_STATE_WORKING)
    async with task_store(taskflow_fake) as store:
        version = await save(store, task, TaskVersion.MISSING)
        for n in range(5):
            chunk = Artifact(artifact_id="a", parts=[Part(text=f"{n}" * 1_000)])
            if n:
                task.artifacts[0].parts.extend(chunk.parts)
            else:
                task.artifacts.append(chunk)
            event = TaskArtifactUpdateEvent(
                task_id=TASK, context_id="c", artifact=chunk, append=n > 0
            )
            version = await store.save(task, event=event, prev_version=version, context=ALICE)
        found = await store.get(TASK, ALICE)
    assert found is not None
    assert found.task == task
    assert len(taskflow_fake.steps(TASK)) == 5
    sizes = [len(e.model_dump_json()) for e in taskflow_fake.events(TASK) if e.id]
    assert max(sizes) < 2_500


async def test_tasks_are_listed_by_pages_the_last_changed_first(
    taskflow_fake: TaskflowFake,
) -> None:
    ids = [f"6f1f3a52-0000-4000-8000-00000000000{n}" for n in range(5)]
    async with task_store(taskflow_fake) as store:
        for n, task_id in enumerate(ids):
            task = task_in(
                TaskState.TASK_STATE_WORKING if n % 2 else TaskState.TASK_STATE_SUBMITTED,
                task_id=task_id,
                context_id=f"c{n % 2}",
                at=1_000 + n,
            )
            await save(store, task, TaskVersion.MISSING)
        page = await store.list(ListTasksRequest(page_size=3), ALICE)
        rest = await store.list(
            ListTasksRequest(page_size=3, page_token=page.next_page_token), ALICE
        )
        odd = await store.list(ListTasksRequest(context_id="c1"), ALICE)
        working = await store.list(ListTasksRequest(status=TaskState.TASK_STATE_WORKING), ALICE)
        late = ListTasksRequest()
        late.status_timestamp_after.FromSeconds(1_003)
        since = await store.list(late, ALICE)
        with pytest.raises(InvalidParamsError):
            await store.list(ListTasksRequest(page_token="none"), ALICE)
    assert [t.id for t in (*page.tasks, *rest.tasks)] == ids[::-1]
    assert (page.total_size, rest.next_page_token) == (5, "")
    assert {t.id for t in odd.tasks} == {t.id for t in working.tasks} == {ids[1], ids[3]}
    assert [t.id for t in since.tasks] == [ids[4], ids[3]]


async def test_a_task_is_not_deleted(taskflow_fake: TaskflowFake) -> None:
    async with task_store(taskflow_fake) as store:
        with pytest.raises(UnsupportedOperationError):
            await store.delete(TASK, ALICE)


@pytest.mark.parametrize(("character", "shown"), [("?", 4096), ("\x01", 2687), ("😀", 4031)])
async def test_a_question_of_any_length_makes_its_flow_wait(
    taskflow_fake: TaskflowFake, character: str, shown: int
) -> None:
    async with task_store(taskflow_fake) as store:
        asking = task_in(TaskState.TASK_STATE_INPUT_REQUIRED)
        asking.status.message.CopyFrom(user_message(character * 5_000, task_id=TASK))
        await save(store, asking, TaskVersion.MISSING)

    flow = taskflow_fake.flow(TASK)
    assert flow is not None
    assert flow.status == "waiting"
    assert flow.wait_json["prompt"]["text"] == character * shown
