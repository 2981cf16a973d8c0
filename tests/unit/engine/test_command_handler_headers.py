"""What of a record's headers goes on to what it causes."""

import json

from processor.contract.events import TRACEPARENT_HEADER, TRACEPARENT_MAX_BYTES
from processor.engine.batch import Outgoing, WriteSet
from processor.testing.memory.record import Appended
from tests.support.builders import FLOW_ID, NOON, document
from tests.support.partition import Partition

LONGEST = b"t" * TRACEPARENT_MAX_BYTES
TOO_LONG = LONGEST + b"t"


def handled(*records: tuple[bytes | None, bytes, list[tuple[str, bytes]]]) -> WriteSet:
    partition = Partition()
    topic = partition.place.topics.control
    return partition.handle(
        [
            Appended(topic, 0, offset, NOON, key, value, tuple(headers))
            for offset, (key, value, headers) in enumerate(records)
        ]
    )


def life(headers: list[tuple[str, bytes]]) -> WriteSet:
    """A flow that is asked to cancel while it waits, and has a step."""
    create = {"controller_id": "c", "goal": "g", "requester_origin": "r"}
    commands = [
        document("create_mirrored", **create),
        document("record_step_observation", run_id="r", task="t", status="running"),
        document("set_waiting", wait={"kind": "manual"}),
        document("request_cancel"),
    ]
    return handled(*((FLOW_ID.encode(), json.dumps(one).encode(), headers) for one in commands))


def caused(batch: WriteSet) -> list[Outgoing]:
    flow_and_step = batch.state[:-1]  # the cursor is caused by all of the batch
    return [*batch.outcomes, *batch.audit, *flow_and_step]


def traces(record: Outgoing) -> list[bytes | None]:
    return [value for name, value in record.headers if name == TRACEPARENT_HEADER]


def test_the_last_traceparent_goes_on_to_all_that_a_command_causes() -> None:
    batch = life([(TRACEPARENT_HEADER, TOO_LONG), (TRACEPARENT_HEADER, LONGEST)])

    assert [traces(one) for one in caused(batch)] == [[LONGEST]] * len(caused(batch))
    assert batch.wakes == [(FLOW_ID, [(TRACEPARENT_HEADER, LONGEST)])]


def test_one_that_is_too_long_ends_with_its_command() -> None:
    batch = life([(TRACEPARENT_HEADER, b"before"), (TRACEPARENT_HEADER, TOO_LONG)])

    assert {json.loads(one.value or b"")["verdict"] for one in batch.outcomes} == {"accepted"}
    assert [traces(one) for one in caused(batch)] == [[]] * len(caused(batch))
    assert batch.wakes == [(FLOW_ID, [])]
