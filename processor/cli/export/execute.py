"""Write flows, steps and events into one file for `taskflow export`."""

import sys
import time
from pathlib import Path
from typing import Any

from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.adapters.sqlite.readonly.export import Export, exporting
from processor.cli.common.history import open_history
from processor.cli.common.output import console, for_people, table, write_json
from processor.cli.common.progress import Bar, progress_bar
from processor.cli.common.runner import run
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.engine.batch import PartitionConfig
from processor.recovery.consistent_cut import consistent_cut, standing_of
from processor.runtime import now_ms
from processor.settings import Settings


def export_to(settings: Settings, file: Path, *, json: bool) -> None:
    """Write the file, and print what is in it."""
    began = time.monotonic()
    counts = run(lambda: _export(settings, file))
    row: dict[str, Any] = {
        "file": str(file),
        **counts,
        "bytes": file.stat().st_size,
        "seconds": round(time.monotonic() - began, 3),
    }
    if for_people(json):
        cells = [value if isinstance(value, str) else f"{value:,}" for value in row.values()]
        console().print(table(None, list(row), [cells]))
    else:
        write_json(row)
    sys.stdout.flush()


async def _export(settings: Settings, file: Path) -> dict[str, int]:
    names = Topics(settings.topic_prefix)
    count = (await count_partitions(settings, [names.state]))[names.state]
    with exporting(file) as made, progress_bar("exporting") as bar:
        made.about(settings.topic_prefix, count, instant(now_ms()))
        for partition in range(count):
            place = PartitionConfig(partition, count, names, settings.dedupe_window_ms)
            async with open_history(settings, partition, "export") as history:
                await _partition(made, place, history, bar)
        return made.counts()


async def _partition(
    made: Export, place: PartitionConfig, history: KafkaLogReader, bar: Bar
) -> None:
    view = await consistent_cut(place, history, bar.advance)
    topics = (place.topics.state, place.topics.audit)
    offset_ranges = {topic: view.offset_ranges[topic] for topic in topics}
    bar.expect(
        sum(offset_range.end - offset_range.start for offset_range in offset_ranges.values())
    )
    bar.at(f"partition {place.partition}")
    # It also holds the topics against each other.
    standing = await standing_of(place, view)
    made.cut(place.partition, offset_ranges, standing.position)
    async for records in view.read(place.topics.state, *offset_ranges[place.topics.state]):
        made.state(place.partition, records)
    async for records in view.read(place.topics.audit, *offset_ranges[place.topics.audit]):
        made.events(records)
