"""`taskflow flow watch`: what happened to one flow, and what comes."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from aiokafka import ConsumerRecord

from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.adapters.kafka.reader.topic_reader import end_offsets, read
from processor.cli.common.output import (
    ReaderHasGone,
    console,
    for_people,
    say,
    write_line,
)
from processor.cli.common.runner import run, settings_and_logs
from processor.cli.common.standard_streams import reader_has_gone
from processor.cli.flow.flow_ids import flow_id_at
from processor.cli.flow.lookup import events_of
from processor.cli.stream_rows import ROWS, StreamRows
from processor.contract.topics import Topics
from processor.domain.transitions import TERMINAL
from processor.engine.partitioner import partition_of
from processor.settings import Settings


def watch_flow(flow_id: str, until: str | None, *, json: bool) -> bool:
    """Print events until the flow has ended, or is `until`; whether it ended as was asked for."""
    settings = settings_and_logs(quiet=True)
    wanted = flow_id_at(settings, flow_id)
    rows = StreamRows(console(), ROWS["flow"]) if for_people(json) else None

    async def watched() -> bool:
        async with aclosing(_events(settings, wanted, until)) as events:
            async for record, event in events:
                if rows is not None:
                    rows.show(record)
                else:
                    write_line(record.value, flush=True)
                if reader_has_gone():
                    raise ReaderHasGone
                status = event["status"]
        return until in (None, status)

    return run(watched)


async def _events(
    settings: Settings, flow_id: str, until: str | None
) -> AsyncGenerator[tuple[ConsumerRecord, dict[str, Any]]]:
    """Past and coming events of a flow, up to the one after which there is nothing to wait for."""
    topic = Topics(settings.topic_prefix).audit
    partition = partition_of(flow_id.encode(), (await count_partitions(settings, [topic]))[topic])
    ends = await end_offsets(settings, topic, [partition])
    past = [(record, orjson.loads(record.value)) async for record in events_of(settings, flow_id)]
    for one in past:
        yield one
    last = past[-1][1] if past else None
    if last is not None and _settles(last, until):
        return
    if last is None:
        say(f"No event of {flow_id} so far; waiting for the first. Ctrl-C ends.")
    seen = 0 if last is None else last["id"]
    coming = read(settings, topic, start=ends, follow=True, partitions=[partition])
    async with aclosing(coming):
        async for record in coming:
            if record.key != flow_id.encode() or record.value is None:
                continue
            event = orjson.loads(record.value)
            if event["id"] > seen:
                yield record, event
                if _settles(event, until):
                    return


def _settles(event: dict[str, Any], until: str | None) -> bool:
    """Whether the flow is as was asked for, or can be so no more."""
    return event["status"] == until or event["status"] in TERMINAL
