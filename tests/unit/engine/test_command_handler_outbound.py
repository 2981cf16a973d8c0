"""Where records and changes of a batch go as soon as they are made."""

import pytest

from processor.engine.batch import LoadedState, Records, WriteSet
from processor.engine.codec import decode
from processor.engine.command_handler import CommandHandler
from processor.engine.rows import Position
from processor.testing.memory.record import Appended
from tests.support.builders import MORNING, create
from tests.support.partition import PLACE

START = Position(0, 0, 1)


class Full(Records):
    """A pack that takes nothing."""

    def add(self, *_: object) -> None:
        raise OverflowError("does not fit into an empty batch")


def handler_of(outbound: WriteSet) -> CommandHandler:
    loaded = LoadedState(flows={create().flow_id: None})
    return CommandHandler(PLACE, loaded, START, next_row_number=1, outbound=outbound)


def created() -> Appended:
    command = create()
    value = command.model_dump_json().encode()
    return Appended(PLACE.topics.commands, 0, 0, MORNING, command.flow_id.encode(), value)


def test_what_a_batch_writes_goes_to_its_outbound() -> None:
    outbound = WriteSet(START)
    handler = handler_of(outbound)
    assert handler.add([decode(created())])
    assert [len(outbound.audit), len(outbound.outcomes), len(outbound.state)] == [1, 1, 0]
    batch = handler.finish()
    assert len(outbound.state) == 2, "the flow and the cursor"
    assert [len(outbound.changes.inserted), len(outbound.changes.ledger_entries)] == [1, 1]
    assert batch.audit == batch.outcomes == batch.state == []


def test_a_fault_after_a_record_was_answered_ends_the_batch() -> None:
    """Its outcome cannot be taken back, so there is no room for another that says otherwise."""
    outbound = WriteSet(START, audit=Full())
    with pytest.raises(OverflowError):
        handler_of(outbound).add([decode(created())])
