"""Which flows one order is for: conditions on a flow and its state, and a digest of what was shown.

An order names each flow at the revision at which it was seen, so that none is changed behind the
back of whoever looked.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from processor.contract.flow import FlowStatus
from processor.domain.transitions import TERMINAL
from processor.ops.json_path import ABSENT, Path, parse, value_at

Doc = Mapping[str, Any]


class BulkAction(StrEnum):
    CANCEL = "cancel"
    FAIL = "fail"
    RESUME = "resume"
    PRUNE = "prune"


FROM: Final[Mapping[BulkAction, frozenset[FlowStatus]]] = {
    BulkAction.CANCEL: frozenset(FlowStatus) - TERMINAL,
    BulkAction.FAIL: frozenset({FlowStatus.RUNNING, FlowStatus.WAITING}),
    BulkAction.RESUME: frozenset({FlowStatus.WAITING}),
    BulkAction.PRUNE: TERMINAL,
}
"""The statuses that an order is for; in any other it would only be refused."""

_SHORT: Final = {"state": "state_json", "wait": "wait_json"}
_COMPARED: Final = re.compile(
    r"(?P<path>.+?)\s*(?P<by>!=|<=|>=|=|<|>|~)\s*(?P<value>.*)", re.DOTALL
)


class BulkTarget(NamedTuple):
    """A flow as it was seen."""

    flow_id: str
    status: str
    updated_at: str
    revision: int


class Condition(NamedTuple):
    """`by` is an operator, or empty: is there; or `!`: is not there. An absent value meets only
    `!` and `!=`."""

    path: Path
    by: str
    value: Any = None

    def holds(self, flow: Doc) -> bool:
        found = value_at(flow, self.path)
        if self.by in ("", "!"):
            return (found is not ABSENT) is (self.by == "")
        if self.by in ("=", "!="):
            return _equal(found, self.value) is (self.by == "=")
        return found is not ABSENT and _compared(found, self.by, self.value)


def condition(text: str) -> Condition:
    """`state.label = invoice`, `goal ~ "week 7"`, `revision > 3`, `state.draft`, `!wait.at`.

    The path is one into the flow, `state` and `wait` being short for `state_json` and `wait_json`;
    the value is JSON where it is, else a text. Raises ValueError.
    """
    found = _COMPARED.fullmatch(text.strip())
    if found is not None:
        return Condition(_path(found["path"]), found["by"], _value(found["value"]))
    text = text.strip()
    return Condition(_path(text.removeprefix("!")), "!" if text.startswith("!") else "")


def _path(text: str) -> Path:
    path = parse(text.strip())
    if not path or path[0] not in {"id", *_FIELDS, *_SHORT}:
        raise ValueError(f"{text!r} is no field of a flow, such as goal or state.label")
    first = path[0]
    return (_SHORT.get(str(first), first), *path[1:])


_FIELDS: Final = frozenset(
    {
        *("controller_id", "goal", "owner_session_key", "requester_origin", "current_step"),
        *("state_json", "wait_json", "status", "cancel_requested", "revision"),
        *("created_at", "updated_at"),
    }
)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _compared(found: Any, by: str, value: Any) -> bool:
    if by == "~":
        return isinstance(found, str) and str(value) in found
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (found, value))
    if not numbers and not (isinstance(found, str) and isinstance(value, str)):
        return False
    less, more = found < value, found > value
    return bool({"<": less, ">": more, "<=": not more, ">=": not less}[by])


class Filter(NamedTuple):
    """What flows an order is for; `before` is a timestamp as flows have it. None: whatever."""

    action: BulkAction
    owner: str | None = None
    status: FlowStatus | None = None
    before: str | None = None
    where: Sequence[Condition] = ()

    def target(self, flow: Doc) -> BulkTarget | None:
        """The flow as a target, if it is meant."""
        meant = (
            flow["status"] in FROM[self.action]
            and self.status in (None, flow["status"])
            and self.owner in (None, flow["owner_session_key"])
            and (self.before is None or flow["updated_at"] < self.before)
            and all(one.holds(flow) for one in self.where)
        )
        if not meant:
            return None
        return BulkTarget(flow["id"], flow["status"], flow["updated_at"], flow["revision"])


def digest(action: BulkAction, reason: str | None, targets: Iterable[BulkTarget]) -> str:
    """16 hex digits that stand for the order: what is done, and to which flows at which
    revisions."""
    order = [action, reason, sorted((one.flow_id, one.revision) for one in targets)]
    return blake2b(orjson.dumps(order), digest_size=8).hexdigest()


Order = Callable[[BulkTarget], dict[str, object]]


def order(action: BulkAction, by: str, reason: str | None = None) -> Order:
    """Makes the command for each target."""

    def command(target: BulkTarget) -> dict[str, object]:
        made: dict[str, object] = {
            "kind": action.value,
            "flow_id": target.flow_id,
            "issued_by": by,
            "expected_revision": target.revision,
        }
        if reason is not None:
            made["reason"] = reason
        return made

    return command
