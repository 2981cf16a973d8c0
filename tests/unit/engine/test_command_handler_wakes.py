"""Which flows a batch wakes: those that wait, and that it asked to cancel."""

import json
from functools import partial
from typing import Any

import pytest

from processor.engine.batch import WriteSet
from processor.testing.memory.record import Appended
from tests.support.builders import FLOW_ID, NOON, document
from tests.support.partition import Partition

TRACE = [("traceparent", b"of the request")]
OTHER = [("traceparent", b"of another command")]

CREATE = partial(
    document, "create_managed", controller_id="kate/inbox", goal="g", requester_origin="user-1"
)
START = partial(document, "start_running")
WAIT = partial(document, "set_waiting", wait={"kind": "manual"})
REQUEST = partial(document, "request_cancel")
CANCEL = partial(document, "cancel")
OBSERVE = partial(document, "record_step_observation", run_id="r", task="t", status="running")

Sent = partial[dict[str, Any]]


def handled(partition: Partition, *commands: Sent) -> WriteSet:
    """One batch of `commands`, all accepted; requests have the headers TRACE, all others OTHER."""
    records = []
    for offset, sent in enumerate(commands, start=partition.position.commands):
        body = sent()
        headers = TRACE if body["kind"] == "request_cancel" else OTHER
        records.append(
            Appended(
                partition.place.topics.commands,
                partition.place.partition,
                offset,
                NOON,
                FLOW_ID.encode(),
                json.dumps(body).encode(),
                tuple(headers),
            )
        )
    batch = partition.handle(records)
    assert {json.loads(one.value or b"")["verdict"] for one in batch.outcomes} == {"accepted"}
    return batch


def test_a_request_to_cancel_wakes_a_flow_that_waits() -> None:
    partition = Partition()
    handled(partition, CREATE, START, WAIT)
    assert handled(partition, REQUEST).wakes == [(FLOW_ID, TRACE)]


def test_a_wait_and_requests_to_cancel_in_one_batch_wake_once() -> None:
    batch = handled(Partition(), CREATE, START, WAIT, REQUEST, REQUEST)
    assert batch.wakes == [(FLOW_ID, TRACE)]


def test_the_wake_carries_the_headers_of_the_request_and_not_of_a_later_command() -> None:
    assert handled(Partition(), CREATE, START, WAIT, REQUEST, OBSERVE).wakes == [(FLOW_ID, TRACE)]


@pytest.mark.parametrize(
    ("before", "commands"),
    [
        ([WAIT], [REQUEST, CANCEL]),
        ([WAIT], [partial(REQUEST, dry_run=True)]),
        ([WAIT, REQUEST], [REQUEST]),
        ([WAIT, REQUEST], [OBSERVE]),
        ([], [REQUEST]),
        ([], [WAIT]),
    ],
    ids=[
        "cancelled in the same batch",
        "a dry run",
        "asked before",
        "asked before, and a step observed",
        "it runs",
        "nobody asked",
    ],
)
def test_nothing_is_woken(before: list[Sent], commands: list[Sent]) -> None:
    partition = Partition()
    handled(partition, CREATE, START, *before)
    assert handled(partition, *commands).wakes == []
