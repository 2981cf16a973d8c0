"""A2A agents whose tasks are flows, by the A2A project's own SDK (extra `a2a`)."""

from processor.a2a.event_stream import FlowEventStream, StreamEnded, SubscriberBehind
from processor.a2a.flow_agent import FlowAgent, PushOptions
from processor.a2a.request_handler import FlowRequestHandler
from processor.a2a.task_store import FlowTaskStore
from processor.a2a.webhook_transport import WebhookTransport

__all__ = [
    "FlowAgent",
    "FlowEventStream",
    "FlowRequestHandler",
    "FlowTaskStore",
    "PushOptions",
    "StreamEnded",
    "SubscriberBehind",
    "WebhookTransport",
]
