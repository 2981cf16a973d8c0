"""`taskflow audit`, `outcomes`, `deadletters`, `steps`: a topic as JSON lines."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from processor.cli.common.options import flow_id_of, since_ms
from processor.cli.common.output import ReaderHasGone, write_json, write_line
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
FLOW = typer.Option(None, "--flow", help="Only the records of this flow.")

Printer = Callable[["ConsumerRecord", bool], None]


def audit(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
) -> None:
    """Print the FlowEvents, what happened to flows, as JSON lines.

    Without an option it prints all that is there, and ends. With --follow it begins at the end
    and goes on until Ctrl-C, unless --from-beginning or --since say where to begin. The events
    of a flow come in their order; between partitions they come by time, roughly.

    Example: `taskflow audit --since 10m --follow`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).audit
    _print(settings, topic, _value, follow, from_beginning, since, flow, one_partition=True)


def outcomes(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
) -> None:
    """Print the outcomes, one for each command, as JSON lines.

    Options and settings are those of `taskflow audit`.

    Example: `taskflow outcomes --since 1h | grep rejected`
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).outcomes
    _print(settings, topic, _value, follow, from_beginning, since, flow)


def deadletters(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
) -> None:
    """Print the dead letters, what could not be read as a command, as JSON lines.

    Key, value and headers are texts, or {"base64": "..."} where they are not UTF-8. --flow
    compares the record's key. Options and settings are those of `taskflow audit`.

    Example: `taskflow deadletters --since 1d`
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).dead_letters
    _print(settings, topic, _dead_letter, follow, from_beginning, since, flow)


def steps(
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = SINCE,
    flow: str | None = FLOW,
) -> None:
    """Print the work items, steps that are offered, as JSON lines.

    An item may come twice, and its step may have been started since: `taskflow step list` shows
    how steps stand. Options and settings are those of `taskflow audit`.

    Example: `taskflow steps --follow`
    """
    settings = settings_and_logs(quiet=True)
    topic = Topics(settings.topic_prefix).steps
    _print(settings, topic, _value, follow, from_beginning, since, flow)


def _print(
    settings: Settings,
    topic: str,
    printer: Printer,
    follow: bool,
    from_beginning: bool,
    since: str | None,
    flow: str | None,
    one_partition: bool = False,
) -> None:
    from processor.adapters.kafka.reader.topic_reader import time_of
    from processor.engine.ports import Start

    if from_beginning and since is not None:
        raise WrongUse("--from-beginning and --since both say where to begin; take one.")
    start: Start = "end" if follow and not from_beginning else "beginning"
    if since is not None:
        start = time_of(since_ms(since))
    key = None if flow is None else flow_id_of(flow).encode()
    run(lambda: _read(settings, topic, printer, start, follow, key, one_partition))


async def _read(
    settings: Settings,
    topic: str,
    printer: Printer,
    start: Any,
    follow: bool,
    key: bytes | None,
    one_partition: bool,
) -> None:
    from processor.adapters.kafka.admin.topic_admin import partition_counts
    from processor.adapters.kafka.reader.topic_reader import read
    from processor.engine.partitioner import partition_of

    partitions = None
    if key is not None and one_partition:
        count = (await partition_counts(settings, [topic])).get(topic)
        partitions = None if count is None else [partition_of(key, count)]
    records = read(settings, topic, start=start, follow=follow, partitions=partitions)
    try:
        async for record in records:
            if key is None or (record.key or b"").partition(b"/")[0] == key:
                printer(record, follow)
            if reader_has_gone():
                raise ReaderHasGone
    finally:
        await records.aclose()


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
