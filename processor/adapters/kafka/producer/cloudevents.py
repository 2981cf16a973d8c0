"""Make the headers of CloudEvents for outcomes and FlowEvents, from their values."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from processor.contract.headers import (
    CLOUDEVENTS_VERSION,
    EVENT_TYPE,
    OUTCOME_TYPE,
    VALUE_TYPE,
    CloudEventHeader,
    Header,
    RecordPlace,
)
from processor.contract.topics import Topics

HeadersOf = Callable[[bytes], list[Header]]
"""Makes further headers from a record's value."""


def cloudevent_headers(topics: Topics, source: str | None) -> Mapping[str, HeadersOf]:
    """The function that makes CloudEvents headers, by topic; empty without a `source`."""
    if source is None:
        return {}
    start: Final[list[Header]] = [
        (CloudEventHeader.SPECVERSION.value, CLOUDEVENTS_VERSION.encode()),
        (CloudEventHeader.SOURCE.value, source.encode()),
        (CloudEventHeader.CONTENT_TYPE.value, VALUE_TYPE.encode()),
    ]

    def of_event(value: bytes) -> list[Header]:
        event = orjson.loads(value)
        return [*start, *_about(event, str(event["id"]), EVENT_TYPE + event["kind"])]

    def of_outcome(value: bytes) -> list[Header]:
        outcome = orjson.loads(value)
        place = str(RecordPlace(**outcome["source"]))
        return [*start, *_about(outcome, place, OUTCOME_TYPE + outcome["verdict"])]

    return {topics.audit: of_event, topics.outcomes: of_outcome}


def _about(doc: Mapping[str, Any], ce_id: str, ce_type: str) -> list[Header]:
    flow_id = doc["flow_id"]
    subject = [] if flow_id is None else [(CloudEventHeader.SUBJECT.value, flow_id.encode())]
    return [
        (CloudEventHeader.ID.value, ce_id.encode()),
        (CloudEventHeader.TYPE.value, ce_type.encode()),
        (CloudEventHeader.TIME.value, doc["at"].encode()),
        *subject,
    ]
