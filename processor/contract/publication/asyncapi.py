"""The AsyncAPI 3.0.0 document: what an application that uses taskflow sends and receives."""

from collections.abc import Mapping
from typing import Any, Final

from processor.contract.dead_letters import FORWARDED_FROM, REDRIVEN_FROM
from processor.contract.events import CHAIN_HEADER, TRACEPARENT_HEADER
from processor.contract.headers import (
    CLOUDEVENTS_VERSION,
    EVENT_TYPE,
    OUTCOME_TYPE,
    VALUE_TYPE,
    CloudEventHeader,
)
from processor.contract.publication import examples
from processor.contract.state import CURSOR_PREFIX
from processor.contract.steps import TASK_HEADER
from processor.contract.topics import SIGNALS, SignalTopics, Topics, TopicSpec
from processor.contract.values import UUID_PATTERN

VERSION: Final = "3.0.0"
KAFKA_BINDING: Final = "0.5.0"
PARTITIONS: Final = 4
"""What a deployment has unless TASKFLOW_PARTITIONS says otherwise."""

_FLOW_KEY: Final = {"type": "string", "pattern": UUID_PATTERN, "description": "The flow id."}
_STEP_KEY: Final = {
    "type": "string",
    "pattern": UUID_PATTERN.removesuffix("$") + "/.+$",
    "description": "{flow id}/{run_id}",
}
_CURSOR_KEY: Final = {"type": "string", "pattern": f"^{CURSOR_PREFIX}[0-9]+$"}
_ANY_KEY: Final = {"type": "string", "description": "The original key; it may be missing."}
_TRACEPARENT: Final = {
    TRACEPARENT_HEADER: {
        "type": "string",
        "description": "W3C trace context, carried over from the command to all that it causes.",
    }
}
_SENT_AGAIN: Final = {
    FORWARDED_FROM: {
        "type": "string",
        "description": "On a copy that was sent to the right partition: topic/partition/offset "
        "of the record that it is a copy of.",
    },
    REDRIVEN_FROM: {
        "type": "string",
        "description": "On a dead letter's record that an operator sent back: "
        "topic/partition/offset of the dead letter.",
    },
}
_CLOUDEVENT: Final = {
    header.value: {"type": "string", "description": f"With TASKFLOW_CLOUDEVENTS_SOURCE: {what}."}
    for header, what in {
        CloudEventHeader.SPECVERSION: f"`{CLOUDEVENTS_VERSION}`",
        CloudEventHeader.SOURCE: "that setting",
        CloudEventHeader.ID: (
            "the id of the FlowEvent; of an outcome topic/partition/offset of its command"
        ),
        CloudEventHeader.TYPE: (
            f"`{EVENT_TYPE}` and the kind, or `{OUTCOME_TYPE}` and the verdict"
        ),
        CloudEventHeader.TIME: "`at`",
        CloudEventHeader.SUBJECT: "the flow id, if it is known",
        CloudEventHeader.CONTENT_TYPE: f"`{VALUE_TYPE}`",
    }.items()
}
_TASK: Final = {TASK_HEADER: {"type": "string", "description": "The step's task, in UTF-8."}}
_CHAIN: Final = {
    CHAIN_HEADER: {
        "type": "string",
        "contentEncoding": "binary",
        "minLength": 16,
        "maxLength": 16,
        "description": "16 bytes: BLAKE2b-128(previous event's chain of the same flow, then this "
        "record's value bytes), starting from 16 zero bytes.",
    }
}


def _headers(*properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {k: v for part in properties for k, v in part.items()}}


def _message(
    schema: str,
    summary: str,
    key: Mapping[str, Any],
    headers: Mapping[str, Any],
    *payloads: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "name": schema,
        "title": summary,
        "contentType": "application/json",
        "headers": dict(headers),
        "payload": {"$ref": f"./json/{schema}.schema.json"},
        "bindings": {"kafka": {"key": dict(key), "bindingVersion": KAFKA_BINDING}},
        "examples": [{"payload": dict(payload)} for payload in payloads],
    }


_DEAD_LETTER: Final = {
    "name": "dead-letter",
    "title": "Raw bytes of what could not be read as a command",
    "contentType": "application/octet-stream",
    "headers": {"$ref": "./json/dead-letter-headers.schema.json"},
    "payload": {
        "type": "string",
        "contentEncoding": "binary",
        "description": "The original value; of one over 512 KiB the first 512 KiB. The original "
        "headers are kept beside the added ones.",
    },
    "bindings": {"kafka": {"key": _ANY_KEY, "bindingVersion": KAFKA_BINDING}},
    "examples": [{"headers": examples.DEAD_LETTER_HEADERS, "payload": ""}],
}
_MESSAGES: Final[Mapping[str, dict[str, Any]]] = {
    "command": _message(
        "command",
        "One change to one flow, asked for",
        _FLOW_KEY,
        _headers(_TRACEPARENT, _SENT_AGAIN),
        examples.COMMAND,
        *examples.MORE_COMMANDS,
    ),
    "outcome": _message(
        "outcome",
        "What became of one record of commands or control",
        {"type": "string", "description": "The flow id, or the original key where none is known."},
        _headers(_TRACEPARENT, _CLOUDEVENT),
        examples.OUTCOME,
    ),
    "flow-event": _message(
        "flow-event",
        "One fact that happened to a flow",
        _FLOW_KEY,
        _headers(_CHAIN, _TRACEPARENT, _CLOUDEVENT),
        examples.EVENT,
    ),
    "flow-snapshot": _message(
        "flow-snapshot",
        "A flow as it stands; no value once it was pruned",
        _FLOW_KEY,
        _headers(_TRACEPARENT),
        examples.FLOW_SNAPSHOT,
    ),
    "step-snapshot": _message(
        "step-snapshot",
        "A step as it stands; no value once its flow was pruned",
        _STEP_KEY,
        _headers(_TRACEPARENT),
        examples.STEP_SNAPSHOT,
        examples.MANAGED_STEP_SNAPSHOT,
    ),
    "work-item": _message(
        "work-item",
        "A managed step that may be started now",
        _STEP_KEY,
        _headers(_TASK, _TRACEPARENT),
        examples.WORK_ITEM,
    ),
    "cursor": _message(
        "cursor",
        "How far a partition has been decided",
        _CURSOR_KEY,
        _headers(),
        examples.CURSOR,
    ),
    "dead-letter": _DEAD_LETTER,
    "signal": _message(
        "signal",
        "An extension: an event that names a wait by topic and correlation id",
        {"type": "string", "description": "Any key."},
        _headers(_TRACEPARENT),
        examples.SIGNAL,
    ),
}
CARRIES: Final = {
    "commands": ("command",),
    "control": ("command",),
    "outcomes": ("outcome",),
    "audit": ("flow-event",),
    "state": ("flow-snapshot", "step-snapshot", "cursor"),
    "deadletters": ("dead-letter",),
    "steps": ("work-item",),
    SIGNALS.name: ("signal",),
}
"""By topic, the messages that it carries."""
_OPERATIONS: Final = {
    "sendCommand": ("send", "commands", "A flow's owner asks for a change."),
    "sendControl": ("send", "control", "An operator asks for a change; the broker's ACLs decide."),
    "receiveOutcome": ("receive", "outcomes", "The outcome of each record, exactly one."),
    "followAudit": ("receive", "audit", "Everything that ever happened, in order by partition."),
    "followState": ("receive", "state", "The present of every flow and step."),
    "receiveWork": ("receive", "steps", "An executor finds the steps that it may start."),
    "receiveDeadLetter": ("receive", "deadletters", "What could not be read."),
    "sendSignal": ("send", SIGNALS.name, "To the flow that waits; read by `taskflow signals`."),
}


def asyncapi_document() -> dict[str, Any]:
    """The whole document, with the default prefix and number of partitions."""
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "taskflow",
            "version": "1",
            "description": "Durable task flows on Kafka, seen from an application that uses them: "
            "it sends commands and receives outcomes, events and snapshots. Names have the "
            "default prefix. The record key is the flow id, and its partition Kafka's default "
            "(murmur2) hash of it; work items alone go by a key of their own, over the "
            "partitions of their topic, which may be more. Consumers read with "
            "isolation.level=read_committed.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            **{spec.name: _channel(topic, spec) for topic, spec in Topics()},
            SIGNALS.name: _channel(SignalTopics().signals, SIGNALS),
        },
        "operations": {
            name: {
                "action": action,
                "summary": summary,
                "channel": {"$ref": f"#/channels/{channel}"},
                "messages": [
                    {"$ref": f"#/channels/{channel}/messages/{message}"}
                    for message in CARRIES[channel]
                ],
            }
            for name, (action, channel, summary) in _OPERATIONS.items()
        },
        "components": {"messages": dict(_MESSAGES)},
    }


def _channel(topic: str, spec: TopicSpec) -> dict[str, Any]:
    return {
        "address": topic,
        "description": _sentence(spec.purpose),
        "messages": {
            name: {"$ref": f"#/components/messages/{name}"} for name in CARRIES[spec.name]
        },
        "bindings": {
            "kafka": {
                "topic": topic,
                "partitions": PARTITIONS,
                "topicConfiguration": {k: _setting(k, v) for k, v in spec.config.items()},
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }


def _setting(name: str, value: str) -> Any:
    if name == "cleanup.policy":
        return value.split(",")
    return int(value) if value.removeprefix("-").isdecimal() else value


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
