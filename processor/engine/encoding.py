"""Write what the processor writes: events, outcomes, flows and steps as JSON.

By hand where each command takes the way: a dictionary of 15 keys that orjson then walks takes twice
the time. Ids, kinds, statuses and times hold nothing that JSON would escape.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import orjson

from processor.contract.commands import MODELS, Command
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code, Verdict
from processor.contract.values import SCHEMA_VERSION, instant
from processor.domain import messages
from processor.domain.facts import Fact
from processor.domain.flow import Flow
from processor.domain.step import Step
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
_STATUS_DOCS: Final = {status.value: f'"{status.value}"' for status in FlowStatus}


class OutcomeHead:
    """What an outcome says first: the same for all commands of a kind that are accepted.

    `doc` is that as JSON; `labels` are kind, verdict and code, for metrics.
    """

    __slots__ = ("doc", "labels", "verdict")

    def __init__(self, kind: str | None, verdict: Verdict, code: Code | None, message: str) -> None:
        name, reason = verdict._value_, code and code._value_
        said = {"kind": kind, "verdict": name, "code": reason, "message": message}
        self.doc = f",{orjson.dumps(said).decode()[1:-1]}"
        self.labels = (kind or "unknown", name, reason or "")
        self.verdict = verdict


ACCEPTED_HEADS: Final[Mapping[str, OutcomeHead]] = MappingProxyType(
    {kind: OutcomeHead(kind, Verdict.ACCEPTED, None, messages.accepted(kind)) for kind in MODELS}
)
DRY_RUN_HEADS: Final[Mapping[str, OutcomeHead]] = MappingProxyType(
    {kind: OutcomeHead(kind, Verdict.ACCEPTED, None, messages.DRY_RUN_ACCEPTED) for kind in MODELS}
)


def refused_head(kind: str, code: Code, details: dict[str, Any]) -> OutcomeHead:
    """What the outcome of a rejected command says first."""
    return OutcomeHead(kind, Verdict.REJECTED, code, messages.refused(code, details, kind))


def encode(value: Any) -> bytes:
    """Compact JSON, non-ASCII as it is."""
    return orjson.dumps(value)


def encode_to_keep(value: Any) -> bytes:
    """The same, of what stays in memory: a copy, since what orjson 3.13 returns holds on to all the
    room that it was written in, 4 KiB at least."""
    return bytes(memoryview(orjson.dumps(value)))


@lru_cache(maxsize=1024)
def text_doc(text: str) -> str:
    """`text` as JSON. Senders come again and again."""
    return orjson.dumps(text).decode()


@lru_cache(maxsize=1024)
def _place_doc(topic: str, partition: int) -> str:
    return f'{{"topic":{orjson.dumps(topic).decode()},"partition":{partition},"offset":'


def source_doc(record: Record) -> str:
    """Where `record` lies, as outcomes and events name it."""
    return f"{_place_doc(record.topic, record.partition)}{record.offset}}}"


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


def result_doc(
    revision: int | None, status: FlowStatus | None, first: int, count: int, allowed: str
) -> str:
    """Where the flow of an outcome is, the `count` events from id `first` on, and what is allowed
    next, as of `allowed_doc`."""
    event_ids = first if count == 1 else ",".join(map(str, range(first, first + count)))
    return (
        f'"revision":{"null" if revision is None else revision},'
        f'"status":{"null" if status is None else _STATUS_DOCS[status._value_]},'
        f'"event_ids":[{event_ids}],"allowed":{allowed}'
    )


NO_RESULT: Final = result_doc(None, None, 0, 0, "null")


def outcome_doc(
    item: Readable | Unreadable,
    head: OutcomeHead,
    result: str,
    details: Mapping[str, Any],
    source: str,
    original: Verdict | None = None,
) -> bytes:
    """The outcome of `item`; `result` as of `result_doc`, `source` as of `source_doc`."""
    if isinstance(item, Readable):
        record, command, digest, _ = item
        about = f'{{"command_id":"{command.command_id}","flow_id":"{command.flow_id}"'
        flag, digest_doc = ("true" if command.dry_run else "false"), f'"{digest.hex()}"'
    else:
        record = item.record
        about = encode({"command_id": item.command_id, "flow_id": item.flow_id}).decode()[:-1]
        flag = encode(item.dry_run).decode()
        digest_doc = "null" if item.digest is None else f'"{item.digest.hex()}"'
    return (
        f"{about}{head.doc},{result},"
        f'"details":{encode(details).decode() if details else "{}"},"dry_run":{flag},'
        f'"command_digest":{digest_doc},"source":{source},"at":"{instant(record.timestamp)}"'
        f"{_END if original is None else _ORIGINAL_END % original._value_}"
    ).encode()


def allowed_doc(flow: Flow | None, authority: Authority) -> str:
    """What an outcome says in `allowed`."""
    if flow is None:
        return "null"
    return _ALLOWED[authority._value_, flow.cancel_requested, flow.status._value_]


def flow_doc(flow: Flow) -> bytes:
    """A flow as it is written, on `state` and in the table."""
    return encode_to_keep(flow.document())


def step_doc(step: Step) -> bytes:
    """A step as it is written, on `state` and in the table."""
    return encode_to_keep(step)
