"""The headers of CloudEvents, and what must not know them."""

import json
from typing import Any

import pytest

from processor.adapters.kafka.producer.cloudevents import cloudevent_headers
from processor.contract.headers import CloudEventHeader, without_cloudevents
from processor.contract.publication import examples
from processor.contract.topics import Topics

TOPICS, SOURCE = Topics("shop"), "//shop.example/taskflow"


def headers(topic: str, doc: Any) -> dict[str, str]:
    made = cloudevent_headers(TOPICS, SOURCE)[topic](json.dumps(doc).encode())
    assert len(made) == len({name for name, _ in made})
    return {name: (value or b"").decode() for name, value in made}


def test_without_a_source_there_are_none() -> None:
    assert cloudevent_headers(TOPICS, None) == {}


def test_an_event_has_its_own_id_kind_time_and_flow() -> None:
    event = examples.EVENT
    assert headers(TOPICS.audit, event) == {
        "ce_specversion": "1.0",
        "ce_source": SOURCE,
        "ce_id": str(event["id"]),
        "ce_type": f"taskflow.event.{event['kind']}",
        "ce_time": event["at"],
        "ce_subject": event["flow_id"],
        "content-type": "application/json",
    }


def test_an_outcome_has_the_place_of_its_command_and_its_verdict() -> None:
    outcome = {**examples.OUTCOME, "source": {"topic": "shop.control", "partition": 2, "offset": 9}}
    made = headers(TOPICS.outcomes, outcome)
    assert made["ce_id"] == "shop.control/2/9"
    assert made["ce_type"] == f"taskflow.outcome.{outcome['verdict']}"


def test_an_outcome_of_no_flow_has_no_subject() -> None:
    assert "ce_subject" not in headers(TOPICS.outcomes, {**examples.OUTCOME, "flow_id": None})


@pytest.mark.parametrize("topic", [TOPICS.audit, TOPICS.outcomes])
def test_they_can_be_taken_away_again(topic: str) -> None:
    example = examples.EVENT if topic == TOPICS.audit else examples.OUTCOME
    made = cloudevent_headers(TOPICS, SOURCE)[topic](json.dumps(example).encode())
    assert {name for name, _ in made} == set(CloudEventHeader)
    kept = [("taskflow-chain", b"0" * 16), ("traceparent", b"00")]
    assert without_cloudevents([*kept, *made]) == kept
