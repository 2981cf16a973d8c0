"""Say which managed steps are meant: by flow, task, status, holder, age and failure."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from processor.contract.steps import StepStatus


class StepFilter(NamedTuple):
    """What a managed step must have; None: whatever.

    `before`: a timestamp as steps have it; the step last changed earlier. `failure`: words that
    the reason of its last failure contains, in any case.
    """

    flow_id: str | None = None
    task: str | None = None
    statuses: Collection[StepStatus] | None = None
    holder: str | None = None
    before: str | None = None
    failure: str | None = None

    def matches(self, step: Mapping[str, Any]) -> bool:
        """Whether a step as JSON is meant; one that was only observed never is."""
        return (
            step["runtime"] == "managed"
            and self.flow_id in (None, step["flow_id"])
            and self.task in (None, step["task"])
            and (self.statuses is None or step["status"] in self.statuses)
            and self.holder in (None, step["child_session_key"])
            and (self.before is None or step["updated_at"] < self.before)
            and (self.failure is None or self.failure.casefold() in failure_of(step).casefold())
        )


def failure_of(step: Mapping[str, Any]) -> str:
    """The reason of a managed step's last failure; empty if there was none."""
    failure = step["execution"]["last_failure"]
    return "" if failure is None else str(failure["reason"])
