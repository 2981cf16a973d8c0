"""Select the flows of a bulk order, and compute the digest of what was shown.

An order names each flow at the revision at which it was seen, so that none is changed behind the
back of whoever looked.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Final, NamedTuple

import orjson

from processor.contract.flow import FlowStatus
from processor.domain.transitions import TERMINAL
from processor.ops.conditions import Condition, Doc


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


class BulkTarget(NamedTuple):
    """A flow as it was seen."""

    flow_id: str
    status: str
    updated_at: str
    revision: int


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
