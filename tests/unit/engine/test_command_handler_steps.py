"""Managed steps through the command handler: what a batch writes, in which order, how large."""

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from processor.contract.topics import MESSAGE_MAX_BYTES
from processor.engine.batch import LoadedState, first_event_id, needs, step_needs, work_record
from processor.engine.codec import decode
from processor.engine.command_handler import CommandHandler
from processor.engine.rows import Position
from processor.testing.memory.record import Appended
from tests.support.builders import EXECUTOR, FLOW_ID, MORNING, TIMER, document, steps
from tests.support.json_values import json_of
from tests.support.partition import PLACE, Partition, Sent

ABOUT = {"controller_id": "c", "goal": "g", "requester_origin": "r"}
TRACE = (("traceparent", b"00-1"), ("mine", b""))


def command(kind: str, **fields: Any) -> Any:
    return Sent("control" if kind == "wake_step" else "commands", MORNING, document(kind, **fields))


def records(*commands: Any, headers: Any = ()) -> Any:
    """What a topic holds of `commands`, from its first offset on."""
    return [
        Appended(
            *(PLACE.topics.commands, 0, offset, MORNING, FLOW_ID.encode()),
            *(json.dumps(body).encode(), headers),
        )
        for offset, body in enumerate(commands)
    ]


def scheduled(count: Any, **fields: Any) -> Any:
    partition = Partition()
    partition.send(command("create_mirrored", **ABOUT))
    for start in range(0, count, 100):
        numbers = range(start, min(start + 100, count))
        partition.send(
            *(command("schedule_step", run_id=f"r{n}", task="t", **fields) for n in numbers)
        )
    return partition


def test_work_items_take_no_more_memory_than_their_length() -> None:
    """They may wait for long, thousands of them."""
    partition = scheduled(0)
    commands = [document("schedule_step", run_id=f"r{n}", task="t") for n in range(100)]
    batch = partition.handle(records(*commands))
    values = [work.record.value for work in batch.work]
    assert len(values) == 100
    tracemalloc.start()
    try:
        again = [work_record(1, settled.row.step, ()) for settled in batch.steps.values()]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    keys_and_headers = 600 * len(again)
    assert taken < sum(map(len, values)) + keys_and_headers


def test_a_flow_with_a_thousand_pending_steps_of_4_kib_ends_in_one_batch() -> None:
    partition = scheduled(1_000, input_json="x" * 4_094)

    body = document("cancel")
    record = replace(records(body)[0], offset=partition.position.commands)
    batch = partition.handle([record])

    events = [json.loads(event.value) for event in batch.audit]
    assert [event["kind"] for event in events] == ["cancelled", *["step_cancelled"] * 1_000]
    run_ids = [event["payload_json"]["run_id"] for event in events[1:]]
    assert run_ids == sorted((f"r{n}" for n in range(1_000)), key=str.encode)
    (outcome,) = (json.loads(one.value) for one in batch.outcomes)
    assert outcome["event_ids"] == [event["id"] for event in events]
    assert len(batch.state) == 1_000 + 2  # the flow and the cursor
    written = [*batch.audit, *batch.outcomes, *batch.state]
    assert max(len(one.value) for one in written) < MESSAGE_MAX_BYTES
    assert sum(len(one.value) for one in written) < 8 * 1024 * 1024
    row = partition.flows[FLOW_ID]
    assert (row.totals.live, row.totals.live_bytes) == (0, 0)
    assert (row.totals.steps, row.totals.unsuccessful) == (1_000, 1_000)
    assert not batch.work


def test_steps_that_were_not_loaded_fail_the_command_and_never_outlive_the_flow() -> None:
    partition = scheduled(2)
    items = [decode(record) for record in records(document("cancel"))]
    row = partition.flows[FLOW_ID]
    memory = LoadedState(flows={FLOW_ID: row})  # without `live`
    handler = CommandHandler(PLACE, memory, partition.position, next_row_number=2)

    batch = handler.handle(items)

    assert [str(fault) for _, fault in batch.faults] == ["0 of 2 live steps were loaded"]
    assert json_of(batch.outcomes[0])["code"] == "internal_error"
    assert not batch.audit


def test_a_work_item_carries_the_task_and_the_trace_and_nothing_of_the_sender_s() -> None:
    partition = Partition()
    bodies = [
        document("create_mirrored", **ABOUT),
        document("schedule_step", run_id="é/1", task="größe", input_json={"n": 1}),
    ]
    (item,) = partition.handle(records(*bodies, headers=TRACE)).work

    assert item.record.key == f"{FLOW_ID}/é/1".encode()
    assert list(item.record.headers) == [
        ("taskflow-task", "größe".encode()),
        ("traceparent", b"00-1"),
    ]
    assert json_of(item.record)["event_id"] == item.event_id == 3


def test_a_batch_says_what_its_steps_were_and_are() -> None:
    partition = scheduled(1)
    start = document("start_step", run_id="r0", issued_by=EXECUTOR)
    new = document("schedule_step", run_id="new", task="t")
    before = partition.steps[FLOW_ID, "r0"]
    batch = partition.handle(
        [
            replace(one, offset=partition.position.commands + n)
            for n, one in enumerate(records(start, new))
        ]
    )

    was, now, _, _ = batch.steps[FLOW_ID, "r0"]
    assert (was, now.step.status) == (before, "running")
    assert batch.steps[FLOW_ID, "new"].before is None
    assert [row.doc for row in batch.changes.steps] == [
        now.doc,
        batch.steps[FLOW_ID, "new"].row.doc,
    ]


@pytest.mark.parametrize(
    ("oldest_unwritten", "commands", "offered"),
    [
        (None, [], 0),
        (None, [document("create_managed", **ABOUT)], 1),
        (None, [document("create_mirrored", **ABOUT)], 2),
        (
            None,
            [
                document("create_mirrored", **ABOUT),
                document("schedule_step", run_id="a", task="t"),
                document("start_step", run_id="a"),
            ],
            2,
        ),
        (1, [document("create_mirrored", **ABOUT)], 0),
        (2, [document("create_mirrored", **ABOUT)], 1),
    ],
)
def test_the_cursor_says_up_to_which_event_all_work_items_are_written(
    oldest_unwritten: int | None, commands: Any, offered: int
) -> None:
    items = [decode(record) for record in records(*commands)]
    memory = LoadedState(flows={FLOW_ID: None})
    handler = CommandHandler(PLACE, memory, Position(0, 0, first_event_id(0)), next_row_number=1)
    handler.add(items)

    batch = handler.finish(oldest_unwritten)

    assert json_of(batch.state[-1])["offered"] == offered


def test_needed_of_steps_are_those_that_are_named_or_listed_and_live_ones_only_for_an_end() -> None:
    partition = scheduled(3)
    partition.send(command("set_waiting", wait=steps("r1", "r2")))
    bodies = [
        document("complete_step", run_id="r0", attempt=1),
        document("set_waiting", wait=steps("x")),
    ]
    needed = needs([decode(record) for record in records(*bodies)])
    names, live = step_needs(needed, partition.flows)
    assert sorted(run_id for _, run_id in names) == ["r0", "r1", "r2", "x"]
    assert live == []

    needed = needs([decode(record) for record in records(document("finish"))])
    assert step_needs(needed, partition.flows) == ([], [FLOW_ID])
    without = Partition()
    without.send(command("create_mirrored", **ABOUT))
    assert step_needs(needed, without.flows) == ([], [])


def test_a_step_that_was_pruned_in_the_batch_is_not_there_any_more() -> None:
    partition = scheduled(1)
    body = {"issued_by": TIMER}
    offsets = partition.position
    sent = [
        Appended(PLACE.topics.commands, 0, offsets.commands, MORNING, FLOW_ID.encode(), value, ())
        for value in [json.dumps(document("cancel")).encode()]
    ]
    prune = json.dumps(document("prune", **body)).encode()
    sent.append(Appended(PLACE.topics.control, 0, 0, MORNING, FLOW_ID.encode(), prune, ()))
    again = [
        document("create_mirrored", **ABOUT),
        document("start_step", run_id="r0"),
        document("schedule_step", run_id="r0", task="t"),
    ]
    sent += [replace(one, offset=offsets.commands + 1 + n) for n, one in enumerate(records(*again))]

    batch = partition.handle(sent)

    codes = [json.loads(one.value)["code"] for one in batch.outcomes]
    assert codes == [None, None, None, "step_not_found", None]
    assert partition.flows[FLOW_ID].totals.steps == 1
