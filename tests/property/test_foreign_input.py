"""Whatever a sender writes, every reader of records goes on, and takes nothing of it for the
processor's own words. One deployment is made of the drawn records, and read by all that reads:
the worker's engine and its traces, views, dead letters, `verify`, `replay`, repartition."""

import asyncio
import json
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from processor.cli.common.output import plain
from processor.cli.deadletters.lookup import row_of
from processor.cli.tail import as_json
from processor.contract.headers import split_dead_letter
from processor.contract.outcomes import Code
from processor.engine.codec import decode
from processor.ops.deadletters import (
    Spot,
    dead_letter_of,
    outbound,
    partition_for,
    redriven_spot,
)
from processor.ops.replay.selection import mark_of
from processor.telemetry.terminal import OBEYED, visible_json
from processor.telemetry.tracing import WorkerTraces
from processor.testing.memory.record import Appended
from processor.views.model.dead_letters import dead_letter_row
from processor.views.model.projection import project, read
from tests.support.foreign_records import recorded
from tests.support.json_values import json_of
from tests.support.moved_deployment import differences, moved
from tests.support.random_histories import check, check_file, export
from tests.support.recorded_deployment import Recorded, violations
from tests.support.reference_values import is_copy

RECORDS_MIN, RECORDS_MAX = 20, 40
"""Of one example."""
DEAD_LETTERS = "taskflow.deadletters"


def test_every_reader_takes_what_any_sender_writes(foreign_records_count: int) -> None:
    seen = 0

    with asyncio.Runner() as runner:

        @settings(max_examples=ceil(foreign_records_count / RECORDS_MIN))
        @given(st.lists(st.integers(0, 2**32), min_size=RECORDS_MIN, max_size=RECORDS_MAX))
        def read_by_all(numbers: list[int]) -> None:
            nonlocal seen
            seen += len(numbers)
            runner.run(_read_by_all(recorded(numbers)))

        read_by_all()

    assert seen >= foreign_records_count


async def _read_by_all(made: Recorded) -> None:
    for partition in range(made.partitions):
        _engine_decides_each(made, partition)
        _traces(made, partition)
        _views(made, partition)
        _dead_letters(made, partition)
        for name in ("commands", "control", "deadletters"):
            for record in made.of(name, partition):
                _shown(record)
    await _verify_and_replay(made)
    new = await moved(made, 3)
    assert differences(made, new) == []
    # No owner has offered its pending steps yet.
    report = await new.verify(at_rest=False)
    assert report.ok, violations(report)


def _engine_decides_each(made: Recorded, partition: int) -> None:
    """One outcome for each record, and one dead letter for each that was quarantined."""
    outcomes = [json_of(record) for record in made.of("outcomes", partition)]
    for name in ("commands", "control"):
        offsets = [
            outcome["source"]["offset"]
            for outcome in outcomes
            if outcome["source"]["topic"].endswith(name)
        ]
        assert offsets == [record.offset for record in made.of(name, partition)]
    sources = {
        (f"taskflow.{name}", record.offset): record
        for name in ("commands", "control")
        for record in made.of(name, partition)
    }
    for outcome in outcomes:
        source = sources[outcome["source"]["topic"], outcome["source"]["offset"]]
        if outcome["code"] == Code.INVALID_KEY and source.key == outcome["flow_id"].encode():
            assert is_copy(source.headers), "only a copy is not forwarded"
        if outcome["verdict"] == "forwarded":
            assert not is_copy(source.headers)
    quarantined = [one["source"] for one in outcomes if one["verdict"] == "quarantined"]
    dead_letters = [split_dead_letter(one.headers) for one in made.of("deadletters", partition)]
    assert [facts and facts.source and facts.source._asdict() for _, facts in dead_letters] == [
        *quarantined
    ]
    assert all(outcome["code"] != Code.INTERNAL_ERROR for outcome in outcomes)


TRACES = WorkerTraces(TracerProvider(), group_id="g")


def _traces(made: Recorded, partition: int) -> None:
    sources = {
        (record.topic, record.offset): record
        for name in ("commands", "control")
        for record in made.of(name, partition)
    }
    traced = []
    for outcome in made.of("outcomes", partition):
        source = json_of(outcome)["source"]
        traced.append((decode(sources[source["topic"], source["offset"]]), outcome.value or b""))
    TRACES.decided(traced, len(traced), began_ns=1, decided_ns=2, committed_ns=3)


def _views(made: Recorded, partition: int) -> None:
    """What comes from the audit; and of dead letters, whoever wrote them, one row each."""
    project([read(record.value or b"") for record in made.of("audit", partition)], {}, {})
    for name in ("deadletters", "commands", "control"):
        for record in made.of(name, partition):
            row = dead_letter_row(record)
            doc = json.loads(row.doc)
            assert 0 <= doc["source"]["partition"] < 2**31
            assert 0 <= doc["source"]["offset"] < 2**63
            assert 0 <= doc["size"] < 2**31
    sources = {
        (record.topic, record.offset): record
        for name in ("commands", "control")
        for record in made.of(name, partition)
    }
    for record in made.of("deadletters", partition):
        doc = json.loads(dead_letter_row(record).doc)
        source = sources[doc["source"]["topic"], doc["source"]["offset"]]
        assert doc["size"] == len(source.value or b"")


def _dead_letters(made: Recorded, partition: int) -> None:
    """What goes back is what came, and names its dead letter; of its own words it has one."""
    for record in (*made.of("deadletters", partition), *made.of("commands", partition)):
        dead_letter = dead_letter_of(record)
        orjson.dumps(row_of(dead_letter, {}))
        plain(str(dead_letter.diagnosis))
        if dead_letter.sendable is None:
            back = outbound(dead_letter, DEAD_LETTERS)
            spot = redriven_spot(SimpleNamespace(headers=back.headers), DEAD_LETTERS)
            assert spot == dead_letter.spot == Spot(record.partition, record.offset)
            assert 0 <= partition_for(back, made.partitions) < made.partitions
            assert (back.key, back.value) == (record.key, record.value)


def _shown(record: Appended) -> None:
    mark_of(record.headers)
    line = orjson.dumps(as_json(record)).decode()
    shown = visible_json(line)
    assert json.loads(shown) == json.loads(line)
    assert not OBEYED.search(shown)


async def _verify_and_replay(made: Recorded) -> None:
    report = await made.verify()
    assert report.ok, violations(report)
    findings = await check(made)
    assert findings.ok, findings.first[:3]
    assert not findings.not_compared
    with TemporaryDirectory() as folder:
        path = Path(folder) / "history.gz"
        await export(made, path)
        from_file = await check_file(path)
    assert from_file.as_json() == findings.as_json()
