"""The published language of taskflow: what producers, consumers and operators import.

README.md beside this file is the contract in full. Nothing here needs more than pydantic.
"""

from schemas.commands import COMMANDS, CONTROL_ONLY, Command, CommandKind
from schemas.dead_letters import DeadLetterHeaders
from schemas.events import EVENTS, EventKind, FlowEvent
from schemas.flow import Flow, FlowStatus, FlowStep, StepStatus, Wait
from schemas.outcomes import Code, Outcome, Verdict
from schemas.state import Cursor, FlowSnapshot, StepSnapshot
from schemas.topics import SPECS, Topics, TopicSpec
from schemas.values import Source, instant, parse_timestamp

__all__ = [
    "COMMANDS",
    "CONTROL_ONLY",
    "EVENTS",
    "SPECS",
    "Code",
    "Command",
    "CommandKind",
    "Cursor",
    "DeadLetterHeaders",
    "EventKind",
    "Flow",
    "FlowEvent",
    "FlowSnapshot",
    "FlowStatus",
    "FlowStep",
    "Outcome",
    "Source",
    "StepSnapshot",
    "StepStatus",
    "TopicSpec",
    "Topics",
    "Verdict",
    "Wait",
    "instant",
    "parse_timestamp",
]
