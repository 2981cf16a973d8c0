"""`taskflow audit`, `outcomes`, `deadletters`, `steps`: a topic as rows, or as JSON lines."""

from __future__ import annotations

import base64
import heapq
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from processor.cli.common.options import FLOW, JSON_LINES, id_or_prefix, is_prefix, since_ms
from processor.cli.common.output import (
    ReaderHasGone,
    console,
    for_people,
    say,
    write_json,
    write_line,
)
from processor.cli.common.runner import WrongUse, run, settings_and_logs
from processor.cli.common.standard_streams import reader_has_gone
from processor.contract.topics import Topics

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from processor.settings import Settings

FOLLOW = typer.Option(False, "--follow", "-f", help="Go on with what comes; alone: from now on.")
FROM_BEGINNING = typer.Option(
    False, "--from-beginning", help="With --follow: what is there already, first."
)
SINCE = typer.Option(
    None, "--since", help="From this time on: 2026-11-22T21:02:08Z, or 10m for ten minutes ago."
)
NEWEST = 50
"""How many a terminal gets, unless --limit says otherwise."""
# Without a default: Typer would import pydantic to convert it, for a group's help, too.
LIMIT = typer.Option(
    None,
    "--limit",
    min=1,
    max=100_000,
    help=f"On a terminal, without --follow: the newest so many; {NEWEST}.",
)
KIND = typer.Option([], "--kind", help="Only events of this kind, such as failed; repeatable.")
NEAR_THE_END = 4
"""Offsets to look at for each record that is wanted: markers of transactions take some of them."""

AsJson = Callable[["ConsumerRecord", bool], None]


class TopicTail(NamedTuple):
    """What of a topic is printed, and how."""

    topic: str
    as_json: AsJson
    follow: bool
    from_beginning: bool
    since: str | None
    flow: str | None
    limit: int
    json: bool
    kinds: Sequence[str] = ()
    one_partition: bool = False
    """Whether all records of a flow lie on its own partition."""


def audit(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
    limit: int | None = LIMIT,
    kind: list[str] = KIND,
    json: bool = JSON_LINES,
) -> None:
    """Print the FlowEvents, what happened to flows.

    A terminal gets the newest as a table, a pipe all that is there as JSON lines. With --follow it
    begins at the end and goes on until Ctrl-C, unless --from-beginning or --since say where to
    begin. The events of a flow come in their order; between partitions they come by time, roughly.
    --flow takes the beginning of an id, too.

    Example: `taskflow audit --since 10m --follow`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).audit
    how = (follow, from_beginning, since, flow, limit or NEWEST, json)
    _print(settings, TopicTail(topic, _value, *how, kinds=kind, one_partition=True))


def outcomes(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
    limit: int | None = LIMIT,
    json: bool = JSON_LINES,
) -> None:
    """Print the outcomes, one for each command.

    Options and settings are those of `taskflow audit`.

    Example: `taskflow outcomes --since 1h | grep rejected`
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).outcomes
    how = (follow, from_beginning, since, flow, limit or NEWEST, json)
    _print(settings, TopicTail(topic, _value, *how))


def deadletters(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
    limit: int | None = LIMIT,
    json: bool = JSON_LINES,
) -> None:
    """Print the dead letters, what could not be read as a command.

    In JSON, key, value and headers are texts, or {"base64": "..."} where they are not UTF-8. --flow
    compares the beginning of the record's key. Options and settings are those of `taskflow audit`.

    Example: `taskflow deadletters --since 1d`
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).dead_letters
    how = (follow, from_beginning, since, flow, limit or NEWEST, json)
    _print(settings, TopicTail(topic, _dead_letter, *how))


def steps(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
    limit: int | None = LIMIT,
    json: bool = JSON_LINES,
) -> None:
    """Print the work items, steps that are offered.

    An item may come twice, and its step may have been started since: `taskflow step list` shows
    how steps stand. Options and settings are those of `taskflow audit`.

    Example: `taskflow steps --follow`
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).steps
    how = (follow, from_beginning, since, flow, limit or NEWEST, json)
    _print(settings, TopicTail(topic, _value, *how))


def _print(settings: Settings, asked: TopicTail) -> None:
    from processor.adapters.kafka.reader.topic_reader import time_of
    from processor.engine.ports import Start

    if asked.from_beginning and asked.since is not None:
        raise WrongUse("--from-beginning and --since both say where to begin; take one.")
    start: Start = "end" if asked.follow and not asked.from_beginning else "beginning"
    if asked.since is not None:
        start = time_of(since_ms(asked.since))
    key = None if asked.flow is None else id_or_prefix(asked.flow)
    run(lambda: _show(settings, asked, start, key))


async def _show(settings: Settings, asked: TopicTail, start: Any, key: str | None) -> None:
    people = for_people(asked.json)
    if people:
        from processor.cli.stream_rows import ROWS, StreamRows

        rows = StreamRows(console(), ROWS[asked.topic.rpartition(".")[2]])
        if not asked.follow:
            newest, whole = await _newest(settings, asked, start, key)
            rows.show_all(newest)
            if not newest:
                say("There is nothing so far.")
            elif not whole:
                say(f"The newest {len(newest):,}; --limit shows more of them, --json all.")
            return
    async with aclosing(_records(settings, asked, start, key)) as records:
        async for record in records:
            if people:
                rows.show(record)
            else:
                asked.as_json(record, asked.follow)
            if reader_has_gone():
                raise ReaderHasGone


async def _newest(
    settings: Settings, asked: TopicTail, start: Any, key: str | None
) -> tuple[list[ConsumerRecord], bool]:
    """The newest records, at most `limit` of them, the oldest first; whether they are all."""
    from processor.adapters.kafka.admin.topic_admin import count_partitions
    from processor.adapters.kafka.reader.topic_reader import end_offsets

    if start == "beginning" and key is None and not asked.kinds:
        count = (await count_partitions(settings, [asked.topic]))[asked.topic]
        ends = await end_offsets(settings, asked.topic, range(count))
        near = {p: max(0, end - NEAR_THE_END * asked.limit) for p, end in ends.items()}
        found, _ = await _collected(settings, asked, near, key)
        if len(found) == asked.limit or not any(near.values()):
            return found, not any(near.values())
    return await _collected(settings, asked, start, key)


async def _collected(
    settings: Settings, asked: TopicTail, start: Any, key: str | None
) -> tuple[list[ConsumerRecord], bool]:
    newest: list[tuple[int, int, int, ConsumerRecord]] = []
    whole = True
    async with aclosing(_records(settings, asked, start, key)) as records:
        async for record in records:
            place = (record.timestamp, record.partition, record.offset, record)
            if len(newest) < asked.limit:
                heapq.heappush(newest, place)
            else:
                whole = False
                heapq.heappushpop(newest, place)
    return [record for *_, record in sorted(newest, key=lambda place: place[:3])], whole


async def _records(
    settings: Settings, asked: TopicTail, start: Any, key: str | None
) -> AsyncGenerator[ConsumerRecord]:
    """The records that are meant."""
    from processor.adapters.kafka.admin.topic_admin import partition_counts
    from processor.adapters.kafka.reader.topic_reader import read
    from processor.engine.partitioner import partition_of

    wanted = None if key is None else key.encode()
    partitions = None
    if wanted is not None and asked.one_partition and not is_prefix(wanted.decode()):
        count = (await partition_counts(settings, [asked.topic])).get(asked.topic)
        partitions = None if count is None else [partition_of(wanted, count)]
    records = read(settings, asked.topic, start=start, follow=asked.follow, partitions=partitions)
    async with aclosing(records):
        async for record in records:
            if wanted is not None and not (record.key or b"").startswith(wanted):
                continue
            if not asked.kinds or _kind(record) in asked.kinds:
                yield record


def _kind(record: ConsumerRecord) -> str | None:
    import orjson

    try:
        return str(orjson.loads(record.value or b"")["kind"])
    except (ValueError, LookupError, TypeError):
        return None


def _value(record: ConsumerRecord, flush: bool) -> None:
    if record.value is not None:
        write_line(record.value, flush=flush)


def _dead_letter(record: ConsumerRecord, flush: bool) -> None:
    write_json(as_json(record), flush=flush)


def as_json(record: ConsumerRecord) -> dict[str, Any]:
    """A record of any bytes as JSON; headers in their order, since names may come twice."""
    from processor.contract.values import instant

    return {
        "partition": record.partition,
        "offset": record.offset,
        "at": instant(record.timestamp),
        "key": as_text(record.key),
        "value": as_text(record.value),
        "headers": [[name, as_text(value)] for name, value in record.headers],
    }


def as_text(raw: bytes | None) -> str | dict[str, str] | None:
    """Bytes as text, or in base64 where they are no UTF-8."""
    if raw is None:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode("ascii")}
