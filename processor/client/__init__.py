"""The API for programs that use taskflow: send commands, do steps, follow the audit."""

from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, TopicsWrong
from processor.client.audit_stream import AuditRecord, AuditStream
from processor.client.errors import (
    AuditGap,
    CommandNotSent,
    CommandRefused,
    InvalidCommand,
    OutcomeTimeout,
    UnreadableEvent,
)
from processor.client.flow_client import FlowClient, Receipt
from processor.client.flow_handle import FlowHandle, flow_id_for
from processor.client.signals.signal_client import (
    SignalClient,
    SignalNotAcknowledged,
    SignalReceipt,
)
from processor.client.signals.signal_reader import InvalidSignal
from processor.client.state.current_flows import CurrentFlow, CurrentFlows, fold
from processor.client.step import GiveUp, RetryAfter, Step
from processor.client.step_worker import StepWorker
from processor.engine.ports import Start

__all__ = [
    "AccessDenied",
    "AuditGap",
    "AuditRecord",
    "AuditStream",
    "BrokerUnreachable",
    "CommandNotSent",
    "CommandRefused",
    "CurrentFlow",
    "CurrentFlows",
    "FlowClient",
    "FlowHandle",
    "GiveUp",
    "InvalidCommand",
    "InvalidSignal",
    "OutcomeTimeout",
    "Receipt",
    "RetryAfter",
    "SignalClient",
    "SignalNotAcknowledged",
    "SignalReceipt",
    "Start",
    "Step",
    "StepWorker",
    "TopicsWrong",
    "UnreadableEvent",
    "flow_id_for",
    "fold",
]
