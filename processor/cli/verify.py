"""`taskflow verify`: check every promise from the topics and tables."""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import typer
from aiokafka.errors import OffsetOutOfRangeError
from rich.console import Console
from rich.text import Text

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import (
    BrokerUnreachable,
    HistoryStalled,
    TopicsWrong,
    explained,
)
from processor.adapters.kafka.log_reader import KafkaLogReader
from processor.adapters.kafka.topic_admin import partition_counts
from processor.adapters.sqlite import TableCorrupt, TableFailed
from processor.adapters.sqlite import readonly_queries as queries
from processor.cli.common.options import duration_ms, flow_id_of, since_ms
from processor.cli.common.output import console, for_people, plain, say, table, write_json
from processor.cli.common.progress import Bar, progress_bar
from processor.cli.common.runner import Refused, run, settings_and_logs
from processor.contract.topics import Topics
from processor.ops.verify.ports import (
    Log,
    LogRange,
    LogRecord,
    TableFlow,
    TablePosition,
    TableProblem,
    TableStep,
    TakeTable,
    Watcher,
)
from processor.ops.verify.report import INVARIANTS, Report
from processor.ops.verify.scope import Scope
from processor.ops.verify.verify import verify as verified
from processor.settings import Settings

PATIENCE_S: Final = 60.0
"""How long a broker may be away that is read from."""
ASK_AGAIN_S: Final = 0.5

T = TypeVar("T")


def verify(
    since: str | None = typer.Option(
        None, "--since", help="From this time on: 2026-11-22T21:02:08Z, or 10m for ten minutes ago."
    ),
    flow: str | None = typer.Option(None, "--flow", help="Only this flow, its whole story."),
    at_rest: bool = typer.Option(
        False, "--at-rest", help="Nothing is under way: a command without outcome is a violation."
    ),
    grace: str = typer.Option(
        "30s", "--grace", help="How long open transactions, and with --at-rest load, may last."
    ),
    json: bool = typer.Option(False, "--json", help="The report as JSON also on a terminal."),
) -> None:
    """Verify all topics and tables against the contract.

    It reads the topics, and the tables in TASKFLOW_STATE_DIR where there are any, computes what
    outcomes, audit, chains and state must be, and compares. It changes nothing; workers may go on
    meanwhile. What retention has taken cannot be looked at, and the report says so. Needs disk
    under TMPDIR for about as much as the tables take, and little memory.

    Prints the first violation of each kind; exit code 1 if there is any. A pipe gets one JSON
    object: ok, covered, counts, checked, violations.

    Example: `taskflow verify --since 1d`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_STATE_DIR,
    TASKFLOW_DEDUPE_WINDOW, TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    settings = settings_and_logs(quiet=True)
    since_at = None if since is None else since_ms(since)
    grace_s = duration_ms(grace, "--grace") / 1000
    flow_id = None if flow is None else flow_id_of(flow)
    report = run(lambda: _verify(settings, since_at, flow_id, at_rest, grace_s))
    if for_people(json):
        _show(console(), report)
    else:
        write_json(report.as_json())
    if not report.ok:
        raise typer.Exit(1)


async def _verify(
    settings: Settings, since_at: int | None, flow_id: str | None, at_rest: bool, grace_s: float
) -> Report:
    topics = Topics(settings.topic_prefix)
    scope = Scope(
        topics=topics,
        partitions=await partitions_of(settings, topics),
        window_ms=settings.dedupe_window_ms,
        since_ms=since_at,
        flow_id=flow_id,
        at_rest=at_rest,
        grace_s=grace_s,
    )

    @asynccontextmanager
    async def logs(partition: int) -> AsyncIterator[Log]:
        log = KafkaLog(settings, partition)
        try:
            with retention_told(settings):
                yield log
        finally:
            await log.close()

    with progress_bar("verifying") as bar:
        return await verified(scope, logs, [LocalTables(settings)], watcher=_Watched(bar))


@contextmanager
def retention_told(settings: Settings) -> Iterator[None]:
    """What Kafka raises, in our words. Raises Refused if retention came first."""
    with explained(settings):
        try:
            yield
        except OffsetOutOfRangeError as error:
            raise Refused(
                f"Retention took what was just to be read ({error}); ask again."
            ) from error


async def partitions_of(settings: Settings, topics: Topics) -> int:
    """How many partitions the topics have. Raises TopicsWrong if they differ, or are missing."""
    there = await partition_counts(settings, [name for name, _ in topics])
    counts = {name: there.get(name) for name, _ in topics}
    if missing := [name for name, count in counts.items() if count is None]:
        raise TopicsWrong(f"{', '.join(missing)} not there; `taskflow topics check` says more.")
    numbers = {count for count in counts.values() if count is not None}
    if len(numbers) > 1:
        raise TopicsWrong(f"The topics differ in their partitions: {counts}; nothing was verified.")
    return numbers.pop()


class KafkaLog:
    """The topics of one partition number. Each that is read has a consumer of its own, so that they
    can be read in step.

    A broker that goes away is waited for: what it does not answer is asked again, and a read goes
    on behind what it has given. Raises BrokerUnreachable or HistoryStalled once that has been in
    vain for PATIENCE_S.
    """

    def __init__(self, settings: Settings, partition: int, topics: Topics | None = None) -> None:
        """`topics`: those of the settings' prefix, unless told."""
        self._settings = settings
        self._connection = connection_options(settings, "verify")
        self._partition = partition
        # Known from the start: aiokafka learns of others one by one, each with a pause.
        names = [name for name, _ in topics or Topics(settings.topic_prefix)]
        self._ends = KafkaLogReader(self._connection, partition, topics=names)
        self._reading: list[KafkaLogReader] = []

    async def extent(self, topic: str) -> LogRange:
        async def ask() -> LogRange:
            # The stable end first: it is never behind an end that was asked for before.
            stable = await self._ends.stable_end(topic)
            extent = await self._ends.extent(topic)
            return LogRange(extent.start, stable, extent.end)

        return await self._answered(ask)

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        return await self._answered(lambda: self._ends.offset_at(topic, at_ms))

    async def _answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        patience = _Patience(self._settings)
        while True:
            try:
                return await ask()
            except Exception as error:
                await patience.bear(error)
                await self._ends.close()

    async def read(
        self, topic: str, start: int, end: int
    ) -> AsyncGenerator[Sequence[LogRecord], None]:
        history = KafkaLogReader(self._connection, self._partition, topics=[topic])
        self._reading.append(history)
        patience = _Patience(self._settings)
        while True:
            try:
                async for records in history.read(topic, start, end):
                    yield records
                    start = records[-1].offset + 1
                    patience.begin()
            except Exception as error:
                await patience.bear(error)
                await history.close()
            else:
                return

    async def close(self) -> None:
        reading, self._reading = self._reading, []
        for history in (self._ends, *reading):
            await history.close()


class _Patience:
    """With a broker that does not answer, for PATIENCE_S from the last time that it did."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.begin()

    def begin(self) -> None:
        self._until = time.monotonic() + PATIENCE_S

    async def bear(self, error: Exception) -> None:
        """Pause, if another try may do better; raise it in our words, if not or if it is enough."""
        if isinstance(error, OffsetOutOfRangeError):
            raise error
        try:
            with explained(self._settings):
                raise error
        except (BrokerUnreachable, HistoryStalled) as told:
            if not told.retriable or time.monotonic() > self._until:
                raise
        await asyncio.sleep(ASK_AGAIN_S)


class LocalTables:
    """The tables in the state directory."""

    def __init__(self, settings: Settings) -> None:
        self._paths: Mapping[int, Path] = queries.tables(settings.state_dir, settings.topic_prefix)

    def image(self, partition: int, take: TakeTable) -> TableProblem | None:
        path = self._paths.get(partition)
        if path is None:
            return None

        def all_of(whole: queries.Whole) -> None:
            take(
                TablePosition(str(path), whole.partitions, *whole.position, whole.filled),
                (TableFlow(*row) for row in whole.flows),
                (TableStep(*row) for row in whole.steps),
            )

        try:
            queries.whole(path, all_of)
        except TableCorrupt as error:
            return TableProblem(str(error), damaged=True)
        except TableFailed as error:
            return TableProblem(str(error), damaged=False)
        return None


class _Watched(Watcher):
    """Counts offsets, of all partitions together."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def expect(self, offsets: int) -> None:
        self._bar.expect(offsets)

    def read(self, offsets: int) -> None:
        self._bar.advance(offsets)

    def at(self, partition: int, what: str) -> None:
        self._bar.at(f"partition {partition}: {what}")


def _show(out: Console, report: Report) -> None:
    rows: list[Sequence[str | Text]] = []
    for name, meaning in INVARIANTS.items():
        found = report.violations_of(name)
        style = "red" if found else "green" if report.checked[name] else "dim"
        rows.append((name, f"{report.checked[name]:,}", Text(f"{found:,}", style=style), meaning))
    out.print(table(None, ("", "checked", "violations", "what must hold"), rows))
    for violation in report.as_json()["violations"]:
        out.print(plain(_sentence(violation)), style="red")
    for sentence in report.not_covered:
        out.print(plain(f"not covered: {sentence}"), style="dim")
    read = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.counts.items())
    out.print(plain(f"Read: {read or 'nothing'}; tables: {', '.join(report.tables) or 'none'}."))
    if report.ok:
        say("All that was looked at holds.")
    else:
        say(f"{report.found.total():,} violations of {len(report.found)} kinds.")


def _sentence(violation: Mapping[str, Any]) -> str:
    where = f"{violation['topic']}/{violation['partition']}"
    if violation["offset"] >= 0:
        where += f" offset {violation['offset']}"
    of = f", flow {violation['flow_id']}" if violation["flow_id"] else ""
    return (
        f"{violation['invariant']} {violation['kind']} ({violation['count']:,}), first at "
        f"{where}{of}: {violation['message']}"
    )
