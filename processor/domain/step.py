"""A step as commands are decided on it and facts are folded into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from processor.contract.steps import StepStatus

_STATUSES: Final = {status.value: status for status in StepStatus}
_new: Final = object.__new__


class _Fields:
    """The fields of a published model, in its order; nothing is validated.

    Shared, so never changed. Without slots, since orjson writes it as it is
    then.
    """

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """One with these `fields`, all that there are; the dictionary is kept."""
        made = _new(cls)
        made.__dict__ = fields
        return made

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """The same with other values in some fields."""
        return self.of({**self.__dict__, **changes})


@dataclass
class Execution(_Fields):
    """`last_failure` is JSON."""

    attempt: int
    max_attempts: int
    lease_ms: int
    backoff_ms: int
    offers: int
    due_at: str | None
    timeout_at: str | None
    progress: Any
    last_failure: dict[str, Any] | None


@dataclass
class _Step(_Fields):
    id: str
    flow_id: str
    runtime: Literal["managed", "mirrored"]
    child_session_key: str | None
    run_id: str
    task: str
    status: StepStatus
    result_json: Any
    created_at: str
    updated_at: str


@dataclass
class ObservedStep(_Step):
    runtime: Literal["mirrored"]


@dataclass
class ManagedStep(_Step):
    runtime: Literal["managed"]
    input_json: Any
    execution: Execution


Step = ObservedStep | ManagedStep


def read_step(document: Mapping[str, Any]) -> Step:
    """The step that `document`, JSON of the published model, says. Raises KeyError."""
    fields = {**document, "status": _STATUSES[document["status"]]}
    if document["runtime"] == "managed":
        fields["execution"] = Execution.of(document["execution"])
        return ManagedStep.of(fields)
    return ObservedStep.of(fields)


def changed_step(step: ManagedStep, changes: Mapping[str, Any]) -> ManagedStep:
    """`step` with the `changes` of an event, which are JSON."""
    fields = {**step.__dict__, **changes, "execution": Execution.of(changes["execution"])}
    if "status" in changes:
        fields["status"] = _STATUSES[changes["status"]]
    return ManagedStep.of(fields)
