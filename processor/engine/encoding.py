"""Write what the processor writes: events, outcomes, flows and steps as JSON.

By hand where each command takes the way: a dictionary of 15 keys that orjson then walks takes twice
the time. Ids, kinds, statuses and times hold nothing that JSON would escape.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import orjson
from pydantic import BaseModel

from processor.contract.commands import Command
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code, Verdict
from processor.contract.steps import Step
from processor.contract.values import SCHEMA_VERSION, instant
from processor.domain.decision import NO_DETAILS
from processor.domain.facts import Fact
from processor.domain.flow import Flow
from processor.domain.transitions import Authority, allowed_from
from processor.engine.codec import Readable, Record, Unreadable

_END: Final = "}"
_ORIGINAL_END: Final = ',"original":"%s"}'
_ALLOWED: Final = {
    (authority.value, cancel_requested, status.value): orjson.dumps(
        allowed_from(status, cancel_requested, authority)
    ).decode()
    for authority in Authority
    for cancel_requested in (False, True)
    for status in FlowStatus
}


class OutcomeContent(NamedTuple):
    """What an outcome says of its command, beside what the record itself says.

    `allowed` is JSON. The events are `event_count` from `first_event_id` on.
    """

    verdict: Verdict
    code: Code | None
    message: str
    revision: int | None = None
    status: FlowStatus | None = None
    first_event_id: int = 0
    event_count: int = 0
    allowed: str = "null"
    details: Mapping[str, Any] = NO_DETAILS
    original: Verdict | None = None


_OutcomeContent = tuple[
    *tuple[Verdict, Code | None, str, int | None, FlowStatus | None, int, int, str],
    *tuple[Mapping[str, Any], Verdict | None],
]
# As domain.flow.new_flow.
new_outcome_content: Final[Callable[[_OutcomeContent], OutcomeContent]] = partial(
    tuple.__new__, OutcomeContent
)


def encode(value: Any) -> bytes:
    """Compact JSON, non-ASCII as it is."""
    return orjson.dumps(value)


@lru_cache(maxsize=1024)
def text_doc(text: str) -> str:
    """`text` as JSON. Senders, topics and sentences come again and again."""
    return orjson.dumps(text).decode()


def source_doc(record: Record) -> str:
    """Where `record` lies, as outcomes and events name it."""
    topic = text_doc(record.topic)
    return f'{{"topic":{topic},"partition":{record.partition},"offset":{record.offset}}}'


def event_doc(event_id: int, fact: Fact, command: Command, source: str) -> bytes:
    """The FlowEvent that `fact` becomes; `source` as of `source_doc`."""
    kind, flow_id, at, revision, status, payload = fact
    before = f'{{"id":{event_id},"flow_id":"{flow_id}","kind":"{kind._value_}","payload_json":'
    after = (
        f',"at":"{at}","revision":{revision},"status":"{status._value_}",'
        f'"command_id":"{command.command_id}","actor":{text_doc(command.issued_by)},'
        f'"source":{source},"schema_version":{SCHEMA_VERSION}}}'
    )
    return before.encode() + orjson.dumps(payload) + after.encode()


def outcome_doc(item: Readable | Unreadable, content: OutcomeContent, source: str) -> bytes:
    """The outcome of `item`; `source` as of `source_doc`."""
    verdict, code, message, revision, status, first, count, allowed, details, original = content
    if isinstance(item, Readable):
        command = item.command
        flag = "true" if command.dry_run else "false"
        about = (
            f'{{"command_id":"{command.command_id}","flow_id":"{command.flow_id}",'
            f'"kind":"{command.kind}"'
        )
    else:
        flag = orjson.dumps(item.dry_run).decode()
        known = {"command_id": item.command_id, "flow_id": item.flow_id, "kind": item.kind}
        about = orjson.dumps(known).decode()[:-1]
    code_doc = "null" if code is None else f'"{code._value_}"'
    status_doc = "null" if status is None else f'"{status._value_}"'
    digest_doc = "null" if item.digest is None else f'"{item.digest.hex()}"'
    event_ids = first if count == 1 else ",".join(map(str, range(first, first + count)))
    return (
        f'{about},"verdict":"{verdict._value_}","code":{code_doc},"message":{text_doc(message)},'
        f'"revision":{"null" if revision is None else revision},"status":{status_doc},'
        f'"event_ids":[{event_ids}],"allowed":{allowed},'
        f'"details":{orjson.dumps(details).decode() if details else "{}"},"dry_run":{flag},'
        f'"command_digest":{digest_doc},"source":{source},"at":"{instant(item.record.timestamp)}"'
        f"{_END if original is None else _ORIGINAL_END % original._value_}"
    ).encode()


def allowed_doc(flow: Flow | None, authority: Authority) -> str:
    """What an outcome says in `allowed`."""
    if flow is None:
        return "null"
    return _ALLOWED[authority._value_, flow.cancel_requested, flow.status._value_]


def flow_doc(flow: Flow) -> bytes:
    """A flow as it is written, on `state` and in the table.

    It is kept in memory, too, so it is a copy: what orjson 3.13 returns holds on to all the room
    that it was written in, 4 KiB at least.
    """
    (
        flow_id,
        controller,
        goal,
        owner,
        origin,
        step,
        state,
        wait,
        status,
        cancel_requested,
        revision,
        created_at,
        updated_at,
    ) = flow
    document = {
        "id": flow_id,
        "controller_id": controller,
        "goal": goal,
        "owner_session_key": owner,
        "requester_origin": origin,
        "current_step": step,
        "state_json": state,
        "wait_json": wait,
        "status": status._value_,
        "cancel_requested": cancel_requested,
        "revision": revision,
        "created_at": created_at,
        "updated_at": updated_at,
    }
    return bytes(memoryview(orjson.dumps(document)))


def step_doc(step: Step) -> bytes:
    """A step as it is written, on `state` and in the table."""
    return orjson.dumps(step.__dict__, default=_fields)


def _fields(model: BaseModel) -> dict[str, Any]:
    return model.__dict__
