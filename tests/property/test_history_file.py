"""A history that goes through a file is the same, whatever its records hold."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from processor.contract.events import CHAIN_HEADER, TRACEPARENT_HEADER
from processor.engine.batch import Outgoing
from processor.ops.replay.file_reader import FileSource, reading
from processor.ops.replay.file_writer import BLOCK_MAX, writing
from processor.ops.replay.recorded_history import (
    Beginning,
    Decided,
    Head,
    RecordedSnapshot,
    RecordedTransaction,
    Rules,
)
from processor.ops.replay.store import open_store

RULES = Rules("flows", 3, 60_000, 60_000)
BEGINNING = Beginning(7, None, 0, 0)

values = st.none() | st.binary(max_size=6) | st.sampled_from((b"{}", b"\n", b"a\nb", "é".encode()))
names = st.sampled_from((TRACEPARENT_HEADER, CHAIN_HEADER, "mine"))
headers = st.lists(st.tuples(names, values), max_size=3)
outgoing = st.builds(Outgoing, values, values, headers)


@st.composite
def decisions(draw: st.DrawFn) -> Decided:
    """As a rule as the processor writes them, which a file tells in fewer words."""
    topic = draw(st.sampled_from(("flows.commands", "flows.control")))
    place = draw(st.tuples(st.integers(0, 2**53), st.integers(0, 2**43)))
    record = FileSource(topic, 1, *place, draw(values), draw(values), draw(headers))
    trace = [header for header in record.headers if header[0] == TRACEPARENT_HEADER][-1:]
    chained = st.binary(min_size=16, max_size=16).map(lambda chain: [(CHAIN_HEADER, chain), *trace])
    usual = st.builds(Outgoing, st.just(record.key), values, st.just(trace)) | outgoing
    event = st.builds(Outgoing, st.just(record.key), values, chained) | outgoing
    dead_letter = draw(st.none() | outgoing)
    return Decided(record, draw(usual), draw(st.lists(event, max_size=2)), dead_letter)


def normal(one: Decided) -> tuple[object, ...]:
    """Headers may come back in sequences of another type."""
    source, written = one.record, [one.outcome, *one.events, one.dead_letter]
    return (
        (source.topic, source.partition, source.offset, source.timestamp, source.key, source.value),
        [*source.headers],
        [record and (record.key, record.value, [*record.headers]) for record in written],
    )


@settings(max_examples=50)
@given(
    st.lists(st.lists(decisions(), min_size=1, max_size=4), max_size=3),
    st.lists(st.builds(RecordedSnapshot, st.binary(), st.binary()), max_size=3),
)
async def test_a_history_comes_back_as_it_was(
    transactions: list[list[Decided]], snapshots: list[RecordedSnapshot]
) -> None:
    with TemporaryDirectory() as home:
        path = Path(home) / "history.gz"
        write(path, transactions, snapshots)
        read, present, waking = await everything(path, 1)

    assert read == [[*map(normal, some)] for some in transactions]
    assert present == snapshots
    assert waking == ["flow"]


async def test_a_transaction_of_several_blocks_is_one(tmp_path: Path) -> None:
    record = FileSource("flows.commands", 1, 5, 6, b"k", b"{}")
    event = Outgoing(b"k", b"{}", [(CHAIN_HEADER, bytes(16))])
    some = [Decided(record, Outgoing(b"k", b"{}", ()), [event]) for _ in range(BLOCK_MAX + 1)]
    write(tmp_path / "history.gz", [some, some[:BLOCK_MAX], some[:1]], [])

    read, _, _ = await everything(tmp_path / "history.gz", 1)

    assert [len(transaction) for transaction in read] == [BLOCK_MAX + 1, BLOCK_MAX, 1]


def write(path: Path, transactions: list[list[Decided]], snapshots: list[RecordedSnapshot]) -> None:
    """Partition 1 has all of it, and so has 0, which is to be passed over."""
    with writing(path) as writer, open_store() as store:
        writer.head(Head("0", "now", RULES, (0, 1)))
        for partition in (0, 1):
            writer.begin(partition, BEGINNING, store)
            for some in transactions:
                writer.transaction(RecordedTransaction.of(some))
            writer.snapshots(snapshots)
            writer.end(partition, ["flow"])


async def everything(
    path: Path, partition: int
) -> tuple[list[list[tuple[object, ...]]], list[RecordedSnapshot], list[str]]:
    transactions: list[list[tuple[object, ...]]] = []
    snapshots: list[RecordedSnapshot] = []
    with reading(path) as history, open_store() as store:
        rules = history.head().rules
        part = next(history.partitions(rules, lambda one: one == partition))
        assert await part.begin(store) == BEGINNING
        async for done in part.decided():
            transactions.append([*map(normal, done.each())])
        async for some in part.snapshots():
            snapshots.extend(some)
        return transactions, snapshots, [*part.waking()]
