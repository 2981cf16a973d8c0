"""The published models: commands, outcomes, events, flows, state and topics.

README.md beside this file is the contract in full. Nothing here needs more than pydantic.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from processor.contract.commands import COMMANDS, CONTROL_ONLY, Command, CommandKind
    from processor.contract.dead_letters import DeadLetterHeaders
    from processor.contract.events import EVENTS, EventKind, FlowEvent
    from processor.contract.flow import Flow, FlowStatus, Wait
    from processor.contract.outcomes import Code, Outcome, Verdict
    from processor.contract.state import Cursor, FlowSnapshot, StepSnapshot
    from processor.contract.steps import (
        STEPS,
        Execution,
        FlowStep,
        ManagedStep,
        ObservedStep,
        Step,
        StepStatus,
        WorkItem,
    )
    from processor.contract.topics import SPECS, Topics, TopicSpec
    from processor.contract.values import Source, instant, parse_timestamp

_HOMES: Final = {
    "COMMANDS": "commands",
    "CONTROL_ONLY": "commands",
    "Command": "commands",
    "CommandKind": "commands",
    "DeadLetterHeaders": "dead_letters",
    "EVENTS": "events",
    "EventKind": "events",
    "FlowEvent": "events",
    "Flow": "flow",
    "FlowStatus": "flow",
    "Wait": "flow",
    "Code": "outcomes",
    "Outcome": "outcomes",
    "Verdict": "outcomes",
    "Cursor": "state",
    "FlowSnapshot": "state",
    "StepSnapshot": "state",
    "STEPS": "steps",
    "Execution": "steps",
    "FlowStep": "steps",
    "ManagedStep": "steps",
    "ObservedStep": "steps",
    "Step": "steps",
    "StepStatus": "steps",
    "WorkItem": "steps",
    "SPECS": "topics",
    "Topics": "topics",
    "TopicSpec": "topics",
    "Source": "values",
    "instant": "values",
    "parse_timestamp": "values",
}
"""The module of each public name: it is imported when the name is asked for, since the models of
commands and events take a tenth of a second to make."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = [
    "COMMANDS",
    "CONTROL_ONLY",
    "EVENTS",
    "SPECS",
    "STEPS",
    "Code",
    "Command",
    "CommandKind",
    "Cursor",
    "DeadLetterHeaders",
    "EventKind",
    "Execution",
    "Flow",
    "FlowEvent",
    "FlowSnapshot",
    "FlowStatus",
    "FlowStep",
    "ManagedStep",
    "ObservedStep",
    "Outcome",
    "Source",
    "Step",
    "StepSnapshot",
    "StepStatus",
    "TopicSpec",
    "Topics",
    "Verdict",
    "Wait",
    "WorkItem",
    "instant",
    "parse_timestamp",
]
