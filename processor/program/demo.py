"""`taskflow demo`: the main job in one command, from a broker of its own to a flow's history."""

import asyncio
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID, uuid4

import orjson
import typer
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.text import Text

from processor.adapters.kafka.admin import create_topics
from processor.adapters.kafka.connection import connection_options
from processor.adapters.kafka.errors import explained
from processor.adapters.kafka.reader import read
from processor.broker import embedded_broker, free_port
from processor.client import FlowClient
from processor.errors import TaskflowError
from processor.placement import partition_of
from processor.program.asking import asking
from processor.program.beside import ViewsBeside, views_beside, views_installed
from processor.program.flow import login, print_history
from processor.program.flows import history
from processor.program.output import console, status_text, table, verdict_text
from processor.program.running import run, settings_and_logs
from processor.program.stories import NotAsExpected, Teller, all_stories, waits_that_end
from processor.program.streams import as_text
from processor.settings import PREFIX, Address, Settings
from schemas.topics import Topics

WORKER_STOP_TIMEOUT_S = 15.0
ALL_IN_TIMEOUT_S = 30.0
EVENT_TIMEOUT_S = 20.0
WAKES = 3
"""How often the processor ends a wait by itself."""


class DemoFailed(TaskflowError):
    """The demo did not come to its end; nothing of it is left running."""


def demo(
    keep: bool = typer.Option(False, "--keep", help="Leave it all up until Ctrl-C, to look at."),
) -> None:
    """Show the main job in one command, and leave nothing behind.

    It starts an embedded Apache Kafka on a free port, makes the topics, starts a worker as a
    process of its own, sends it over 200 commands about 50 flows, some of them wrong on
    purpose, and shows what comes of them. One flow only waits: until a time, for an event that
    comes too late, for one that comes, and until it is cancelled. The views, another process,
    show what is left of it. The first run on a machine fetches Kafka.

    Example: `taskflow demo --keep`

    Settings: TASKFLOW_CACHE_DIR, TASKFLOW_BROKER_HEAP, TASKFLOW_VIEWS_HTTP with `--keep`.
    """
    settings = settings_and_logs(quiet=True)
    run(lambda: _demo(settings, keep=keep))


async def _demo(chosen: Settings, *, keep: bool) -> None:
    out = console()
    out.print("[bold]1.[/] Starting Apache Kafka, a real one, for this demo only ...")
    async with embedded_broker(heap=chosen.broker_heap, cache_dir=chosen.cache_dir) as broker:
        # In the broker's own directory, which goes with it, also when we are killed.
        directory = broker.data_dir / "demo"
        settings = Settings(
            bootstrap_servers=broker.bootstrap,
            state_dir=directory / "state",
            http=None,
            views_http=chosen.views_http if keep else Address("127.0.0.1", free_port()),
        )
        await create_topics(settings)
        out.print(f"   Kafka answers at {broker.bootstrap}; the six topics are made.")
        out.print("[bold]2.[/] Starting a worker as a process of its own ...")
        async with _worker(settings, directory) as worker:
            await _unless_ended(worker, _play_and_show(settings, out, directory, keep=keep))
    out.print("Nothing is left running. Next: `taskflow up` keeps everything on this machine.")


async def _play_and_show(settings: Settings, out: Console, directory: Path, *, keep: bool) -> None:
    """The stories, and what the views make of them; they start meanwhile."""
    if not views_installed():
        await _play(settings, out)
        out.print("The views show it live: pip install 'taskflow[views]'.")
        return
    with (directory / "views.log").open("wb") as log:
        async with views_beside(settings, _environment(settings), log) as views:
            await _play(settings, out)
            if not await views.ready():
                said = (directory / "views.log").read_text("utf-8", "replace").splitlines()
                raise DemoFailed("\n".join(["The views did not start:", *said[-5:]]))
            out.print(f"[bold]8.[/] What the views have seen: {await _seen(settings, views)}.")
            if keep:
                out.print(f"   Look at {views.url} (every flow, live). Kafka answers at")
                out.print(f"   {settings.bootstrap_servers}. Ctrl-C ends it all.")
                await asyncio.Event().wait()
            out.print("   To look at it: `taskflow demo --keep`.")


async def _seen(settings: Settings, views: ViewsBeside) -> str:
    """Once the views are level with the audit, as they say."""
    async with asyncio.timeout(EVENT_TIMEOUT_S), asking(views.url) as asked:
        while True:
            statistics = await asked.get("statistics")
            if statistics["view"]["complete"] and statistics["view"]["behind"] == 0:
                break
            await asyncio.sleep(0.1)
    by_status = ", ".join(f"{n} {status}" for status, n in statistics["flows"].items() if n)
    return f"{statistics['flows_total']} flows ({by_status}), {statistics['events_total']} events"


async def _play(settings: Settings, out: Console) -> None:
    told = _Told()
    listening = [
        asyncio.ensure_future(_show_events(settings, out, told)),
        asyncio.ensure_future(_count_outcomes(settings, told)),
    ]
    try:
        out.print("[bold]3.[/] Telling stories to it; these are the FlowEvents, as they come:")
        async with FlowClient(settings) as client:
            tell, patient = Teller(client), Teller(client)
            await _first_story(tell)
            flow_id, waiting_id = _misplaced_by_crc32(settings.partitions), str(uuid4())
            (sent, seconds), _ = await _together(
                [
                    _tell_all(settings, told, tell, flow_id),
                    waits_that_end(patient, waiting_id, told.event),
                ]
            )
        commands = tell.told + patient.told
        expected = commands.total() + 3  # the malformed one, the misplaced one and its copy
        await _in_time(told.reach(expected), told, expected)
        history_of = [event async for event in history(settings, flow_id)]
        history_of_waits = [event async for event in history(settings, waiting_id)]
        letters = [letter async for letter in _dead_letters(settings)]
    finally:
        for task in listening:
            task.cancel()
        await asyncio.wait(listening)
    _conclude(out, told, commands, history_of, history_of_waits, letters)
    out.print(
        f"{sent} commands were answered in {seconds:.2f} s, {sent / seconds:.0f} a second: each "
        "flow's next command waited for the answer to the one before."
    )


async def _tell_all(
    settings: Settings, told: "_Told", tell: Teller, flow_id: str
) -> tuple[int, float]:
    """How many commands the stories took, and how many seconds."""
    began = time.monotonic()
    before = tell.told.total()
    await _together([*all_stories(tell)])
    seconds, sent = time.monotonic() - began, tell.told.total() - before
    await _foreigners(settings, told, tell, flow_id)
    return sent, seconds


@dataclass(slots=True)
class _Told:
    """The outcomes and the FlowEvents as they stand on their topics."""

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wakes: int = 0
    """Outcomes of the processor's own commands."""
    settled: set[str] = field(default_factory=set)
    """Ids of commands that got their last word."""
    events: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """By flow and the revision that they gave it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, outcome: dict[str, Any]) -> None:
        self.verdicts[outcome["verdict"], outcome["code"] or ""] += 1
        self.wakes += outcome["kind"] == "wake"
        if outcome["verdict"] != "forwarded" and outcome["command_id"] is not None:
            self.settled.add(outcome["command_id"])
        self.changed.set()

    def see(self, event: dict[str, Any]) -> None:
        self.events.setdefault((event["flow_id"], event["revision"]), event)
        self.changed.set()

    @property
    def answered(self) -> int:
        """Outcomes of commands that others have sent."""
        return self.verdicts.total() - self.wakes

    async def reach(self, count: int) -> None:
        """Once that many are answered, and the processor's own, too."""
        await self._until(lambda: self.answered >= count and self.wakes >= WAKES)

    async def settles(self, command_id: str) -> None:
        await self._until(lambda: command_id in self.settled)

    async def event(self, flow_id: str, revision: int) -> dict[str, Any]:
        """The first FlowEvent with that revision of a flow. Raises DemoFailed."""
        try:
            async with asyncio.timeout(EVENT_TIMEOUT_S):
                await self._until(lambda: (flow_id, revision) in self.events)
        except TimeoutError:
            raise DemoFailed(
                f"Flow {flow_id} did not come to revision {revision} within "
                f"{EVENT_TIMEOUT_S:.0f} s: its wait does not end."
            ) from None
        return self.events[flow_id, revision]

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            self.changed.clear()
            await self.changed.wait()


async def _first_story(tell: Teller) -> None:
    """One flow alone, so that what follows measures the work and not the worker's start."""
    await tell.send(
        *("create_mirrored", str(uuid4()), "session:first"),
        controller_id="demo",
        goal="See whether anybody answers",
        requester_origin="demo",
    )


async def _foreigners(settings: Settings, told: _Told, tell: Teller, flow_id: str) -> None:
    """A flow that meets other clients and an operator.

    One client hashes keys with CRC32, as librdkafka does, so that its command lies on the wrong
    partition; another writes what is no command; the operator cancels.
    """
    topics, me = Topics(settings.topic_prefix), "session:foreign"
    key = flow_id.encode()
    create = {
        "kind": "create_managed",
        "command_id": str(uuid4()),
        "flow_id": flow_id,
        "issued_by": me,
        "controller_id": "foreign",
        "goal": "Find the right partition",
        "requester_origin": "another client",
    }
    with explained(settings):
        options = connection_options(settings, "foreign")
        async with AIOKafkaProducer(**options, acks="all") as producer:
            wrong = zlib.crc32(key) % settings.partitions
            await producer.send_and_wait(
                topics.commands, orjson.dumps(create), key=key, partition=wrong
            )
            await producer.send_and_wait(
                topics.commands, b'{"kind": "create_managed", oops', key=key
            )
    await _in_time(told.settles(create["command_id"]), told, tell.told.total() + 2)
    await tell.send("start_running", flow_id, me)
    await tell.send("set_waiting", flow_id, me, wait={"kind": "manual"})
    await tell.send("resume", flow_id, f"operator:{login()}", control=True)
    await tell.send("update_state", flow_id, me, patch={"found": True}, next_step="done")
    await tell.send("cancel", flow_id, f"operator:{login()}", control=True)


def _conclude(
    out: Console,
    told: _Told,
    commands: Counter[str],
    events: Sequence[bytes],
    waits: Sequence[bytes],
    letters: Sequence[dict[str, Any]],
) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(commands.items()))
    out.print("[bold]4.[/] What became of the commands:")
    out.print(Text(f"   {kinds}; {told.wakes} wake by the processor itself"))
    rows = [
        (verdict_text(verdict), code, str(count))
        for (verdict, code), count in sorted(told.verdicts.items())
    ]
    out.print(table(None, ("verdict", "code", "outcomes"), rows))
    out.print("[bold]5.[/] The history of one flow, which another client created and an operator")
    out.print("   resumed and cancelled:")
    print_history(out, events)
    out.print("[bold]6.[/] The history of one that waited: until a time, for an event that did not")
    out.print("   come in time, for one that came, and until its cancellation was asked for:")
    print_history(out, waits)
    out.print("[bold]7.[/] The dead letter of what was no command, kept as it was:")
    for letter in letters:
        out.print(Text(f"   {letter['value']!s} ({letter['code']}: {letter['message']})"))
    found = len(letters), len(events), len(waits)
    if found != (1, 6, 11):
        raise NotAsExpected(
            f"There are {found[0]} dead letters, and {found[1]} and {found[2]} events of the two "
            "flows, but 1, 6 and 11 were expected."
        )


async def _show_events(settings: Settings, out: Console, told: _Told) -> None:
    topic = Topics(settings.topic_prefix).audit
    async with aclosing(read(settings, topic, follow=True)) as records:
        async for record in records:
            event = orjson.loads(record.value)
            line = Text(f"   {event['at'][11:23]} {event['flow_id'][:8]} ", style="dim")
            line.append(f"{event['kind']:<17}", style="bold not dim")
            line.append_text(status_text(f"{event['status']:<10}"))
            line.append(f" r{event['revision']:<2} {event['actor']}")
            out.print(line, soft_wrap=True)
            told.see(event)


async def _count_outcomes(settings: Settings, told: _Told) -> None:
    topic = Topics(settings.topic_prefix).outcomes
    async with aclosing(read(settings, topic, follow=True)) as records:
        async for record in records:
            told.hear(orjson.loads(record.value))


async def _dead_letters(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    topic = Topics(settings.topic_prefix).dead_letters
    async for record in read(settings, topic):
        headers = {name: as_text(value) for name, value in record.headers}
        yield {
            "value": as_text(record.value),
            "code": headers["taskflow-code"],
            "message": headers["taskflow-message"],
        }


def _misplaced_by_crc32(partitions: int) -> str:
    while True:
        flow_id = str(UUID(bytes=os.urandom(16), version=4))
        key = flow_id.encode()
        if zlib.crc32(key) % partitions != partition_of(key, partitions):
            return flow_id


async def _together(stories: Sequence[Any]) -> list[Any]:
    """What all of them answer, told at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(story) for story in stories]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _in_time(work: Any, told: _Told, expected: int) -> None:
    try:
        async with asyncio.timeout(ALL_IN_TIMEOUT_S):
            await work
    except TimeoutError:
        raise DemoFailed(
            f"{told.answered} of {expected} outcomes came within {ALL_IN_TIMEOUT_S:.0f} s."
        ) from None


@dataclass(slots=True)
class _Worker:
    process: asyncio.subprocess.Process
    log: Path

    def last_words(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-5:]) or "(it said nothing)"


@asynccontextmanager
async def _worker(settings: Settings, directory: Path) -> AsyncIterator[_Worker]:
    """`taskflow worker` as a child that ends with us, however we end: it watches its input."""
    log = directory / "worker.log"
    with _opened(log) as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", "worker", "--with-parent"),
            env=_environment(settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=sink,
            start_new_session=True,
        )
    try:
        yield _Worker(process, log)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(WORKER_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _opened(log: Path) -> BinaryIO:
    log.parent.mkdir(parents=True)
    return log.open("wb")


def _environment(settings: Settings) -> dict[str, str]:
    """Ours without the user's settings, which are about other brokers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {
        **kept,
        "TASKFLOW_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TASKFLOW_STATE_DIR": str(settings.state_dir),
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_VIEWS_HTTP": str(settings.views_http),
        "TASKFLOW_LOG_FORMAT": "json",
    }


async def _unless_ended(worker: _Worker, work: Any) -> None:
    """Raises DemoFailed when the worker ends before the work is done."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(worker.process.wait())
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DemoFailed(
                f"The worker ended with code {ending.result()}:\n{worker.last_words()}"
            )
        working.result()
    except TaskflowError as error:
        if not isinstance(error, DemoFailed):
            raise DemoFailed(f"{error} The worker's last words:\n{worker.last_words()}") from error
        raise
    finally:
        for task in (working, ending):
            task.cancel()
        await asyncio.wait({working, ending})
