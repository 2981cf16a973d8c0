"""Flows and their waits."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from processor.contract.values import (
    Instant,
    Json,
    LongText,
    Message,
    Revision,
    Text,
    Timestamp,
    Uuid,
    WaitText,
)


class FlowStatus(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    FAILED = "failed"


Prompt = Annotated[
    Json,
    Field(
        description="What is needed to end the wait: a question, a form, a link. At most 16 KiB as "
        "written."
    ),
]


def _different(run_ids: list[str]) -> list[str]:
    if len(set(run_ids)) < len(run_ids):
        raise ValueError("a run id occurs twice")
    return run_ids


class TimerWait(Message):
    """Until a time."""

    kind: Literal["timer"]
    at: Timestamp


class ExternalEventWait(Message):
    """Until the event is delivered, or until `timeout_at`."""

    kind: Literal["external_event"]
    topic: WaitText
    correlation_id: WaitText
    timeout_at: Timestamp | None = None
    prompt: Prompt = None


class ManualWait(Message):
    """Until the owner or an operator resumes the flow, or until `timeout_at`."""

    kind: Literal["manual"]
    timeout_at: Timestamp | None = None
    prompt: Prompt = None


class StepsWait(Message):
    """A join: until managed steps of the flow have ended, or until `timeout_at`."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"mode": {"const": "any"}}, "required": ["mode"]},
            "then": {"required": ["run_ids"], "properties": {"run_ids": {"type": "array"}}},
        }
    )

    kind: Literal["steps"]
    run_ids: (
        Annotated[
            list[Text],
            Field(min_length=1, max_length=100, json_schema_extra={"uniqueItems": True}),
            AfterValidator(_different),
        ]
        | None
    ) = None
    """Absent: all managed steps that the flow has when it is looked at."""
    mode: Literal["all", "all_or_failure", "any"] | None = None
    """`all`, also if absent: until all have ended. `all_or_failure`: that, or until one has failed
    or was cancelled. `any`, only with `run_ids`: until one has ended."""
    timeout_at: Timestamp | None = None

    @model_validator(mode="after")
    def _any_of_a_list(self) -> Self:
        if self.mode == "any" and self.run_ids is None:
            raise ValueError("mode any needs run_ids")
        return self


Wait = Annotated[
    TimerWait | ExternalEventWait | ManualWait | StepsWait, Field(discriminator="kind")
]
WAITS: Mapping[str, type[Message]] = {
    "timer": TimerWait,
    "external_event": ExternalEventWait,
    "manual": ManualWait,
    "steps": StepsWait,
}


class Flow(Message):
    """A long-lived task, as it stands after its newest change.

    `revision` grows by exactly 1 with every accepted change; `wait_json` is non-null exactly
    while `status` is `waiting`; both times are the broker's append times of commands.
    """

    id: Uuid
    controller_id: Text
    goal: LongText
    owner_session_key: Text
    requester_origin: Text
    current_step: Text
    state_json: Json
    wait_json: Json
    status: FlowStatus
    cancel_requested: bool
    revision: Revision
    created_at: Instant
    updated_at: Instant
