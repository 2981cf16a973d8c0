"""Select the flows or steps of a bulk order, and compute the digest of what was shown.

An order names each flow at the revision at which it was seen, so that none is changed behind the
back of the operator who looked. A step has no revision: its status decides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.steps import StepStatus
from processor.domain.transitions import STEP_MOVES, TERMINAL
from processor.ops.conditions import Condition, Doc
from processor.ops.step_filter import failure_of


class BulkAction(StrEnum):
    CANCEL = "cancel"
    FAIL = "fail"
    RESUME = "resume"
    PRUNE = "prune"
    RETRY_STEP = "retry_step"
    CANCEL_STEP = "cancel_step"


GOAL_KEPT: Final = 240
"""Characters of a goal that a target keeps: there may be millions of them."""

FROM: Final[Mapping[BulkAction, frozenset[FlowStatus]]] = {
    BulkAction.CANCEL: frozenset(FlowStatus) - TERMINAL,
    BulkAction.FAIL: frozenset({FlowStatus.RUNNING, FlowStatus.WAITING}),
    BulkAction.RESUME: frozenset({FlowStatus.WAITING}),
    BulkAction.PRUNE: TERMINAL,
    BulkAction.RETRY_STEP: frozenset(FlowStatus) - TERMINAL,
    BulkAction.CANCEL_STEP: frozenset(FlowStatus) - TERMINAL,
}
"""The flows' statuses that an order is for; in any other it would only be refused."""

STEPS_FROM: Final[Mapping[BulkAction, frozenset[StepStatus]]] = {
    action: STEP_MOVES[action].origins for action in (BulkAction.RETRY_STEP, BulkAction.CANCEL_STEP)
}
"""The same of an order for steps."""

GONE: Final[Mapping[BulkAction, frozenset[Code]]] = {
    **dict.fromkeys(BulkAction, frozenset[Code]()),
    BulkAction.PRUNE: frozenset({Code.NOT_FOUND}),
    BulkAction.CANCEL_STEP: frozenset({Code.NOT_FOUND, Code.ALREADY_TERMINAL}),
}
"""Refusals that say that there is nothing left to do."""


class BulkTarget(NamedTuple):
    """A flow as it was seen; of its goal the beginning."""

    flow_id: str
    status: str
    updated_at: str
    revision: int
    owner: str = ""
    goal: str = ""

    @property
    def seen(self) -> tuple[object, ...]:
        """What a digest stands for."""
        return self.flow_id, self.revision


class StepTarget(NamedTuple):
    """A managed step as it was seen. `failure`: the reason of the last one."""

    flow_id: str
    run_id: str
    status: str
    updated_at: str
    attempt: int
    max_attempts: int
    task: str
    holder: str | None
    failure: str

    @classmethod
    def of(cls, step: Doc) -> "StepTarget":
        execution = step["execution"]
        return cls(
            flow_id=step["flow_id"],
            run_id=step["run_id"],
            status=step["status"],
            updated_at=step["updated_at"],
            attempt=execution["attempt"],
            max_attempts=execution["max_attempts"],
            task=step["task"],
            holder=step["child_session_key"],
            failure=failure_of(step),
        )

    @property
    def seen(self) -> tuple[object, ...]:
        """What a digest stands for."""
        return self.flow_id, self.run_id, self.updated_at


Target = BulkTarget | StepTarget


class Filter(NamedTuple):
    """What flows an order is for, itself or for their steps; `before` is a timestamp as flows have
    it. None: whatever."""

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
        return BulkTarget(
            flow_id=flow["id"],
            status=flow["status"],
            updated_at=flow["updated_at"],
            revision=flow["revision"],
            owner=flow["owner_session_key"],
            goal=flow["goal"][:GOAL_KEPT],
        )


def digest(action: BulkAction, given: str | int | None, targets: Iterable[Target]) -> str:
    """16 hex digits that stand for the order: what is done, with the reason or the attempts that
    were given, and to which flows at which revisions, or steps as last changed when."""
    order = [action, given, sorted(one.seen for one in targets)]
    return blake2b(orjson.dumps(order), digest_size=8).hexdigest()


Order = Callable[[Any], dict[str, object]]
"""Makes the command for a target."""


def order(action: BulkAction, by: str, reason: str | None = None) -> Order:
    """An order for flows."""
    return _order(action, by, lambda flow: {"expected_revision": flow.revision}, reason=reason)


def step_order(action: BulkAction, by: str, attempts: int | None = None) -> Order:
    """An order for steps; `attempts` are those of a `retry_step`."""
    return _order(action, by, lambda step: {"run_id": step.run_id}, attempts=attempts)


def _order(action: BulkAction, by: str, about: Order, **given: object) -> Order:
    said = {name: value for name, value in given.items() if value is not None}
    return lambda target: {
        "kind": action.value,
        "flow_id": target.flow_id,
        "issued_by": by,
        **about(target),
        **said,
    }
