"""The contract's rules, written a second time, from its text alone.

Shares no rule with the processor: a mistake there must not hide here. What is shared is the
published language, names and the form of times among it.
"""

import json
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import orjson

from processor.contract.commands import MODELS
from processor.contract.values import instant, parse_timestamp

Doc = dict[str, Any]

LIVE: Final = frozenset({"created", "running", "waiting"})
TERMINAL: Final = frozenset({"cancelled", "finished", "failed"})
STATUSES: Final = LIVE | TERMINAL
MOVES: Final[Mapping[str, tuple[frozenset[str], str | None]]] = {
    # event: from, to (None: the status stays)
    "started": (frozenset({"created"}), "running"),
    "waiting": (frozenset({"running"}), "waiting"),
    "resumed": (frozenset({"waiting"}), "running"),
    "finished": (frozenset({"running"}), "finished"),
    "failed": (frozenset({"running", "waiting"}), "failed"),
    "cancel_requested": (LIVE, None),
    "cancelled": (LIVE, "cancelled"),
    "state_updated": (LIVE, None),
}
STEP_EVENTS: Final = frozenset(
    [
        *("step_observed", "step_scheduled", "step_started", "step_extended", "step_released"),
        *("step_retried", "step_dispatched", "step_succeeded", "step_failed", "step_cancelled"),
    ]
)
"""What happens to a step leaves its flow as it is."""
EVENT_KINDS: Final = {*MOVES, *STEP_EVENTS, "created", "pruned"}
CAUSES: Final[Mapping[str, Sequence[Sequence[str]]]] = {
    # command: the events of an accepted one, in alternatives
    "create_managed": [["created"]],
    "create_mirrored": [["created", "started"]],
    "start_running": [["started"]],
    "set_waiting": [["waiting"]],
    "resume": [["resumed"]],
    "resume_external": [["resumed"]],
    "finish": [["finished"]],
    "fail": [["failed"]],
    "request_cancel": [["cancel_requested"], []],
    "cancel": [["cancelled"]],
    "update_state": [["state_updated"]],
    "record_step_observation": [["step_observed"]],
    "schedule_step": [["step_scheduled"]],
    "start_step": [["step_started"]],
    "extend_step": [["step_extended"], []],
    "complete_step": [["step_succeeded"]],
    "fail_step": [["step_retried"], ["step_failed"]],
    "release_step": [["step_released"]],
    "cancel_step": [["step_cancelled"]],
    "retry_step": [["step_retried"]],
    "wake": [["resumed"], ["cancelled"]],
    "wake_step": [["step_failed"], ["step_retried"], ["step_cancelled"], ["step_dispatched"]],
    "prune": [["pruned"]],
}
CONTROL_ONLY: Final = frozenset({"wake", "wake_step", "prune"})
OPEN_TO_ALL: Final = frozenset(
    [
        *("resume_external", "record_step_observation", "start_step", "extend_step"),
        *("complete_step", "fail_step", "release_step"),
    ]
)
ALWAYS: Final = frozenset({"request_cancel", "record_step_observation"})
FITTING: Final[Mapping[str, frozenset[str]]] = {
    # status: the kinds that it takes, beside those that are always taken
    "created": frozenset({"start_running", "cancel", "update_state"}),
    "running": frozenset({"set_waiting", "finish", "fail", "cancel", "update_state"}),
    "waiting": frozenset({"resume", "resume_external", "fail", "cancel", "update_state", "wake"}),
    **dict.fromkeys(TERMINAL, frozenset({"prune"})),
}
FORGOTTEN: Final = frozenset({"forbidden", "not_owner", "idempotency_conflict"})
"""Refusals that leave a command id free."""
REFUSALS: Final = frozenset(
    {
        "idempotency_conflict",
        "forbidden",
        "expired",
        "already_exists",
        "not_found",
        "not_owner",
        "revision_mismatch",
        "already_terminal",
        "cancel_pending",
        "illegal_transition",
        "step_exists",
        "step_not_found",
        "wait_mismatch",
        "not_due",
        "not_holder",
        "invalid_data",
        "state_too_large",
        "too_many_steps",
    }
)
CODES: Final[Mapping[str, frozenset[str | None]]] = {
    # verdict: its codes
    "accepted": frozenset({None}),
    "forwarded": frozenset({None}),
    "quarantined": frozenset(
        [
            "too_large",
            "malformed",
            "unsupported_version",
            "invalid_command",
            "invalid_key",
            "internal_error",
        ]
    ),
    "rejected": REFUSALS,
    "duplicate": REFUSALS - FORGOTTEN | {None},
}
OUTCOME_FIELDS: Final = frozenset(
    [
        "command_id",
        "flow_id",
        "kind",
        "verdict",
        "code",
        "message",
        "revision",
        "status",
        "event_ids",
        "allowed",
        "details",
        "dry_run",
        "command_digest",
        "source",
        "at",
    ]
)
EVENT_FIELDS: Final = frozenset(
    [
        "id",
        "flow_id",
        "kind",
        "payload_json",
        "at",
        "revision",
        "status",
        "command_id",
        "actor",
        "source",
        "schema_version",
    ]
)
FLOW_FIELDS: Final = (
    "id",
    "controller_id",
    "goal",
    "owner_session_key",
    "requester_origin",
    "current_step",
    "state_json",
    "wait_json",
    "status",
    "cancel_requested",
    "revision",
    "created_at",
    "updated_at",
)
CURSOR_FIELDS: Final = ("commands", "control", "next_event_id", "offered")

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_OPTIONAL: Final = {
    kind: frozenset(name for name, info in model.model_fields.items() if not info.is_required())
    for kind, model in MODELS.items()
}
_OPTIONAL_OF_WAITS: Final = {
    "external_event": frozenset({"timeout_at", "prompt"}),
    "manual": frozenset({"timeout_at", "prompt"}),
    "steps": frozenset({"run_ids", "mode", "timeout_at"}),
}
# Below 1e-4 there is more than one way to write a float, and the digest's is Python's.
_TINY: Final = re.compile(rb"[:,\[]-?(?:[0-9.]+e-|0\.0000)")


def parsed(raw: str | bytes | None) -> Doc | None:
    """A JSON object; None if it is none."""
    try:
        value = orjson.loads(raw or b"")
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def canonical(value: Any) -> bytes:
    """One way to write a JSON value, for comparing."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are written alike: 1 is not 1.0, nor is it true."""
    return canonical(one) == canonical(other)


def hash16(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16).digest()


def digest(command: Doc) -> str:
    """`command_digest` of a command without nulls."""
    text = canonical(command)
    if _TINY.search(text):
        text = json.dumps(
            command, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
    return hash16(text).hex()


def without_nulls(command: Doc) -> Doc:
    """Null in an optional field equals absent."""
    kind = command.get("kind")
    optional = _OPTIONAL.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
    kept = {k: v for k, v in command.items() if v is not None or k not in optional}
    wait = kept.get("wait")
    if isinstance(wait, dict):
        kind = wait.get("kind")
        optional = (
            _OPTIONAL_OF_WAITS.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
        )
        kept["wait"] = {k: v for k, v in wait.items() if v is not None or k not in optional}
    return kept


def uuid_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and _UUID.fullmatch(value) else None


def step_id(flow_id: str, run_id: str) -> str:
    return str(uuid.uuid5(uuid.UUID(flow_id), run_id))


def merged(state: Any, patch: Any) -> Any:
    if isinstance(state, dict) and isinstance(patch, dict):
        return {**state, **patch}
    return patch


def signature(flow: Doc) -> bytes:
    """6 bytes for each field of a flow, in their order, and 6 for what else it holds, so that what
    differs can be named without keeping the documents."""
    parts = [
        blake2b(canonical(flow[f]) if f in flow else b"", digest_size=6).digest()
        for f in FLOW_FIELDS
    ]
    more = sorted(flow.keys() - set(FLOW_FIELDS))
    parts.append(blake2b(canonical(more), digest_size=6).digest())
    return b"".join(parts)


def differing(one: bytes, other: bytes) -> list[str]:
    """The fields in which two signatures differ."""
    names = (*FLOW_FIELDS, "more fields")
    return [n for i, n in enumerate(names) if one[6 * i : 6 * i + 6] != other[6 * i : 6 * i + 6]]


def allowed(status: str, cancel_requested: bool, control: bool) -> list[str]:
    """What an outcome of a flow at `status` lists, by the topic that the command came by."""
    kinds = FITTING[status] | ALWAYS
    if cancel_requested and status in LIVE:
        kinds &= ALWAYS | {"cancel", "wake"}
    return sorted(kinds if control else kinds - CONTROL_ONLY)


def due_ms(wait: Any) -> int | None:
    """When a wait ends by itself, if it does."""
    if not isinstance(wait, dict):
        return None
    text = wait.get("at" if wait.get("kind") == "timer" else "timeout_at")
    return None if text is None else parse_timestamp(text)


def own_events(kinds: Sequence[str]) -> list[str]:
    """The kinds of a command's events without those that steps add: the end of steps with their
    flow, the end of a join by its last step."""
    first = kinds[0] if kinds else ""
    if first in ("finished", "failed", "cancelled"):
        rest = [kind for kind in kinds[1:] if kind != "step_cancelled"]
        return [first, *rest]
    joins = ("waiting", "step_succeeded", "step_failed", "step_cancelled")
    if first in joins and list(kinds[1:]) == ["resumed"]:
        return [first]
    return list(kinds)


def payload_of(command: Doc, event_kind: str, wait: Any) -> Doc:
    """What an event of this kind must hold if `command` caused it; `wait` is what the flow waited
    for before."""
    match event_kind:
        case "created":
            return {
                **{n: command.get(n) for n in ("controller_id", "goal", "requester_origin")},
                "owner_session_key": command.get("owner_session_key", command.get("issued_by")),
                "current_step": command.get("current_step", "init"),
                "state_json": command.get("state_json", {}),
            }
        case "waiting":
            asked = dict(command.get("wait", {}))
            for name in {"at", "timeout_at"} & asked.keys():
                asked[name] = instant(parse_timestamp(asked[name]))
            return {"wait": asked}
        case "resumed" if command.get("kind") == "resume":
            return {"by": "command", "state_patch": command.get("state_patch")}
        case "resumed" if command.get("kind") == "resume_external":
            brought = {"resume_event": command["payload"]} if "payload" in command else None
            return {"by": "external_event", "state_patch": brought}
        case "resumed" if command.get("kind") != "wake":
            return {"by": "steps", "state_patch": None}
        case "resumed":
            timer = isinstance(wait, dict) and wait.get("kind") == "timer"
            return {"by": "timer" if timer else "timeout", "state_patch": None}
        case "finished":
            return {"final_state": command.get("final_state")}
        case "failed":
            return {"reason": command.get("reason")}
        case "state_updated":
            return {"patch": command.get("patch"), "next_step": command.get("next_step")}
        case _:
            return {}


@lru_cache(maxsize=8_192)
def home_of(key: bytes, partitions: int) -> int:
    """Kafka's default partition: murmur2 of the key, without its sign, modulo the partitions."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for (word,) in struct.iter_unpack("<I", key[:whole]):
        k = word * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if rest := key[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return (h & 0x7FFFFFFF) % partitions
