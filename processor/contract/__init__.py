"""The published models: commands, outcomes, events, flows, state and topics.

README.md beside this file is the contract in full. Nothing here needs more than pydantic.
"""

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
