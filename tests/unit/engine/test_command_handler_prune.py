"""A prune of a flow with as many steps as a flow may have: one batch, a slice at a time."""

import orjson

from processor.engine.batch import AT_ONCE, LoadedState
from processor.engine.codec import decode
from processor.engine.command_handler import CommandHandler
from processor.testing.memory.record import Appended
from tests.support.partition import PLACE, Partition, Sent
from tests.unit.commands import create, finish, flow_id, prune, start

STEPS = 10_000


def test_ten_thousand_steps_go_with_their_flow_a_slice_at_a_time() -> None:
    partition = Partition()
    for body in (create(1), start(1), finish(1)):
        partition.send(Sent("commands", 1, body))
    runs = [f"r{n}" for n in range(STEPS)]
    value = orjson.dumps(prune(1))
    record = Appended("taskflow.control", 0, 0, 2, flow_id(1).encode(), value)
    loaded = LoadedState(flows=dict(partition.flows), run_ids={flow_id(1): runs})
    handler = CommandHandler(PLACE, loaded, partition.position, next_row_number=2)
    handler.add([decode(record)])

    sizes, keys = [], []
    for _ in handler.settle():
        sizes.append(len(handler.batch.state))
        keys += [(one.key, one.value) for one in handler.batch.state]
        handler.batch.state.clear()

    assert max(sizes) <= AT_ONCE
    assert keys == [(flow_id(1).encode(), None)] + [
        (f"{flow_id(1)}/{run}".encode(), None) for run in runs
    ]
    assert len(handler.batch.steps) == STEPS
