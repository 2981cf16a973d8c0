"""For programs that use taskflow: send commands, await outcomes, follow the audit."""

from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, TopicsWrong
from processor.client.audit_stream import AuditRecord, AuditStream
from processor.client.errors import (
    AuditGap,
    CommandNotSent,
    InvalidCommand,
    OutcomeTimeout,
    UnreadableEvent,
)
from processor.client.flow_client import FlowClient, Receipt
from processor.client.reader import Start

__all__ = [
    "AccessDenied",
    "AuditGap",
    "AuditRecord",
    "AuditStream",
    "BrokerUnreachable",
    "CommandNotSent",
    "FlowClient",
    "InvalidCommand",
    "OutcomeTimeout",
    "Receipt",
    "Start",
    "TopicsWrong",
    "UnreadableEvent",
]
