"""Whatever is sent: outcomes, events, state, dead letters and copies are what the contract, read
once more by itself (tests/support/reference_model.py), says that they are."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from processor.contract import Topics
from processor.domain.decision import Limits
from processor.engine.batch import PartitionConfig, WriteSet, first_event_id
from processor.engine.rows import Position
from processor.ops.verify.contract import home_of
from processor.testing.memory.record import Appended
from tests.support.partition import Partition
from tests.support.reference_assertions import Reader
from tests.support.reference_model import Contract, Expected
from tests.support.reference_values import sorted_compact
from tests.support.traffic import HORIZON_MS, PARTITION, PARTITIONS, WINDOW_MS, Life

PLACE = PartitionConfig(
    partition=PARTITION,
    partitions=PARTITIONS,
    topics=Topics("t"),
    dedupe_window_ms=WINDOW_MS,
    limits=Limits(timer_max_horizon_ms=HORIZON_MS),
)


def contract() -> Contract:
    return Contract(PARTITION, lambda key: home_of(key, PARTITIONS), WINDOW_MS, HORIZON_MS)


def batches_of(seeds: list[int]) -> list[list[Appended]]:
    """A record of each seed, in batches as polls may bring them."""
    life = Life(contract())
    batches: list[list[Appended]] = [[]]
    for seed in seeds:
        batches[-1].append(life.go_on(seed))
        if seed % 5 == 0:
            batches.append([])
    return [batch for batch in batches if batch]


class Batches:
    """Compares what batches write with what the contract says, one after the other."""

    def __init__(self) -> None:
        self.reader = Reader(contract())
        self.state: dict[str, bytes | None] = {}
        self.position = {"t.commands": 0, "t.control": 0}

    def read(self, records: list[Appended], batch: WriteSet) -> None:
        asked = self._to_be_woken()
        all_expected = self.reader.read(
            records, outcomes=batch.outcomes, audit=batch.audit, dead_letters=batch.dead_letters
        )
        read_copies(records, all_expected, batch)
        read_work(all_expected, batch)
        for record in records:
            self.position[record.topic] = record.offset + 1
        self._read_state(all_expected, batch)
        assert {flow_id for flow_id, _ in batch.wakes} == self._to_be_woken() - asked

    def _to_be_woken(self) -> set[str]:
        flows = {i: known.flow for i, known in self.reader.contract.flows.items()}
        return {i for i, f in flows.items() if f["status"] == "waiting" and f["cancel_requested"]}

    def _offered(self, all_expected: list[Expected], batch: WriteSet) -> int:
        """Up to which event all items are written when those of this batch are not."""
        first, last = PARTITION * 2**40, PARTITION * 2**40 + self.reader.contract.events
        unwritten = [item["event_id"] for expected in all_expected for item in expected.work]
        before = min(unwritten) - 1 if unwritten else last
        return 0 if before == first else before

    def _read_state(self, all_expected: list[Expected], batch: WriteSet) -> None:
        written = {(key or b"").decode(): value for key, value, _ in batch.state}
        assert len(written) == len(batch.state), "each key once"
        events = [event for expected in all_expected for event in expected.events]
        touched = {event["flow_id"] for event in events}
        assert touched <= written.keys()
        assert {key.partition("/")[0] for key in written} <= touched | {"cursor"}
        self.state |= written
        count = self.reader.contract.events
        cursor: dict[str, Any] = {
            "commands": self.position["t.commands"],
            "control": self.position["t.control"],
            "next_event_id": PARTITION * 2**40 + count + 1,
            "offered": self._offered(all_expected, batch),
            "schema_version": 1,
        }
        expected = self.reader.present() | {f"cursor/{PARTITION}": cursor}
        present = {key: json.loads(value) for key, value in self.state.items() if value is not None}
        assert sorted_compact(present) == sorted_compact(expected)


def read_work(all_expected: list[Expected], batch: WriteSet) -> None:
    expected = [item for expected in all_expected for item in expected.work]
    assert [item.event_id for item in batch.work] == [item["event_id"] for item in expected]
    for (_, record), item in zip(batch.work, expected, strict=True):
        assert record.key == f"{item['flow_id']}/{item['run_id']}".encode()
        assert sorted_compact(json.loads(record.value or b"")) == sorted_compact(item)
        assert record.headers[0] == ("taskflow-task", item["task"].encode())


def read_copies(records: list[Appended], all_expected: list[Expected], batch: WriteSet) -> None:
    expected = [
        (record, expected.forwarded_to)
        for record, expected in zip(records, all_expected, strict=True)
        if expected.forwarded_to is not None
    ]
    assert len(batch.forwards) == len(expected)
    for (record, partition), copy in zip(expected, batch.forwards, strict=True):
        origin = f"{record.topic}/{PARTITION}/{record.offset}".encode()
        assert (copy.topic, copy.partition) == (record.topic, partition)
        assert (copy.record.key, copy.record.value) == (record.key, record.value)
        headers = [*record.headers, ("taskflow-forwarded-from", origin)]
        assert list(copy.record.headers) == headers


# One number for each record, so that hypothesis looks for the fewest records that show a fault.
@settings(max_examples=200)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=60))
def test_what_is_written_is_what_the_contract_says(seeds: list[int]) -> None:
    partition = Partition(PLACE, Position(0, 0, first_event_id(PARTITION)))
    batches = Batches()
    for records in batches_of(seeds):
        batch = partition.handle(records)
        assert batch.faults == []
        batches.read(records, batch)
