"""Show the main job for `taskflow demo`, from its own broker to a flow's history."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.text import Text

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.errors import BrokerUnreachable
from processor.cli.common.child_processes import (
    ChildProcess,
    ViewsChild,
    child_views,
    child_worker,
    environment_of,
    views_installed,
)
from processor.cli.common.output import console, say
from processor.cli.common.runner import Interrupted, run
from processor.cli.demo.foreign_client import foreigners, misplaced_by_crc32
from processor.cli.demo.managed_steps import killed_executor
from processor.cli.demo.observer import (
    EVENT_TIMEOUT_S,
    DemoFailed,
    Observer,
    dead_letters,
    observing,
)
from processor.cli.demo.report import DemoReport
from processor.cli.demo.scenarios import (
    NotAsExpected,
    Scenario,
    all_stories,
    first_story,
    waits_that_end,
)
from processor.cli.flow.lookup import history
from processor.cli.invocation import program_as_called
from processor.client import FlowClient
from processor.client.http.views_client import asking
from processor.embedded.broker import embedded_broker, free_port
from processor.embedded.keeper import GIVE_UP_AT, kept_running
from processor.errors import TaskflowError, install_line
from processor.runtime import CLEAN_UP_S, end_tasks, unless_stopped
from processor.settings import Address, Settings


def show_demo(settings: Settings, *, keep: bool, verbose: bool) -> None:
    """Show it; with `keep`, leave it up until a signal comes."""
    left_up = asyncio.Event()
    report = DemoReport(console(), verbose=verbose)
    try:
        run(lambda: _demo(settings, report, left_up if keep else None))
    except Interrupted:
        if not left_up.is_set():
            raise
    report.out.print("Nothing is left running. Next:")
    program = program_as_called()
    for command, does in (
        ("up", "broker, worker and page; the data stays"),
        ("demo --keep", "this again, left up, with its page"),
        ("demo --verbose", "this again, with every event"),
        ("--help", "all commands"),
    ):
        report.out.print(f"  {f'{program} {command}':<{len(program) + 17}}{does}", markup=False)


async def _demo(chosen: Settings, report: DemoReport, left_up: asyncio.Event | None) -> None:
    """`left_up` is set when all was shown and is left up; then only a signal ends it. None: it is
    not left up."""
    broker_ended = asyncio.Event()
    async with AsyncExitStack() as stack:
        with report.stage("Starting Apache Kafka") as done:
            broker = await stack.enter_async_context(
                embedded_broker(
                    heap=chosen.broker_heap,
                    cache_dir=chosen.cache_dir,
                    progress=report.progress,
                )
            )
            give_up_at = 1 if left_up is None else GIVE_UP_AT
            await stack.enter_async_context(
                kept_running(broker, broker_ended, say, give_up_at=give_up_at)
            )
            # In the broker's own directory, which goes with it, also when we are killed.
            directory = broker.data_dir / "demo"
            http = Address("127.0.0.1", free_port()) if left_up is None else chosen.views_http
            settings = Settings(
                bootstrap_servers=broker.bootstrap,
                state_dir=directory / "state",
                http=None,
                views_http=http,
            )
            await create_topics(settings)
            done.append(f"Apache Kafka answers at {broker.bootstrap}, with the seven topics")
        async with child_worker(environment_of(settings), directory / "worker.log") as worker:
            shows = _play_and_show(settings, report, directory, left_up)
            await unless_stopped(_unless_ended("worker", worker, shows), broker_ended)


async def _play_and_show(
    settings: Settings, report: DemoReport, directory: Path, left_up: asyncio.Event | None
) -> None:
    """The stories, and what the views make of them; they start meanwhile."""
    if not views_installed():
        await _play(settings, report, directory)
        report.out.print(f"The page shows it live: {install_line('views')}", markup=False)
        if left_up is not None:
            await _leave_up(settings, report, left_up)
        return
    environment, log = environment_of(settings), directory / "views.log"
    async with child_views(settings, environment, log) as views:
        await _unless_ended("view worker", views, _play(settings, report, directory))
        if not await views.ready():
            raise DemoFailed(f"The views did not start:\n{views.last_words()}")
        report.out.print(f"What the views have seen: {await _seen(settings, views)}.")
        if left_up is None:
            return
        report.out.print(f"Look at {views.url} (every flow, live).", markup=False)
        await _unless_ended("view worker", views, _leave_up(settings, report, left_up))


async def _leave_up(settings: Settings, report: DemoReport, left_up: asyncio.Event) -> None:
    report.out.print(f"Kafka answers at {settings.bootstrap_servers}. Ctrl-C ends it all.")
    left_up.set()
    await asyncio.Event().wait()


async def _seen(settings: Settings, views: ViewsChild) -> str:
    """Once the views are level with the audit, as they say."""
    async with asyncio.timeout(EVENT_TIMEOUT_S), asking(views.url) as asked:
        while True:
            statistics = await asked.get("statistics")
            if statistics["view"]["complete"] and statistics["view"]["behind"] == 0:
                break
            await asyncio.sleep(0.1)
    by_status = ", ".join(f"{n} {status}" for status, n in statistics["flows"].items() if n)
    return f"{statistics['flows_total']} flows ({by_status}), {statistics['events_total']} events"


async def _play(settings: Settings, report: DemoReport, directory: Path) -> None:
    """All stories at once: those of FlowClients, the one that waits, and that of executors."""
    flow_id, waiting_id = misplaced_by_crc32(settings.partitions), str(uuid4())
    steps_id = str(uuid4())
    with report.stage("Starting a worker, and sending it commands") as done:
        async with observing(settings, report.event, apart=steps_id) as observer:
            async with FlowClient(settings) as client:
                scenario, patient = Scenario(client), Scenario(client)
                await first_story(scenario)
                (sent, seconds), _, _ = await _together(
                    [
                        _play_all(settings, observer, scenario, flow_id),
                        waits_that_end(patient, waiting_id, observer.event),
                        killed_executor(settings, directory, environment_of(settings), steps_id),
                    ]
                )
            commands = scenario.sent + patient.sent
            expected = commands.total() + 3  # the malformed one, the misplaced one and its copy
            await observer.in_time(observer.reach(expected), expected)
        done += [
            f"a worker has decided {observer.outcomes} records, each flow's in their order",
            f"{sent} commands in {seconds:.1f} s; two executors did three steps, one was killed",
        ]
    histories = [
        [event async for event in history(settings, one)] for one in (flow_id, waiting_id, steps_id)
    ]
    quarantined = [one async for one in dead_letters(settings)]
    _conclude(report, observer, commands, histories, quarantined)


def _conclude(
    report: DemoReport,
    observer: Observer,
    commands: Counter[str],
    histories: Sequence[Sequence[bytes]],
    quarantined: Sequence[dict[str, Any]],
) -> None:
    moved, waited, stepped = histories
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(commands.items()))
    report.only_verbose(f"   {kinds}; {observer.wakes} wake by the processor itself")
    counted = sorted(observer.verdicts.items())
    words = ", ".join(f"{count} {code or verdict}" for (verdict, code), count in counted)
    report.out.print(Text.assemble(("Outcomes: ", "bold"), words))
    for one in quarantined:
        because = f"{one['value']!s} ({one['code']}: {one['message']})"
        report.out.print(Text.assemble(("Its dead letter: ", "bold"), because))
    if report.verbose:
        title = "A flow that another client created, and an operator resumed and cancelled:"
        report.history(title, moved)
        report.history("A flow of three steps; the executor of one was killed:", stepped)
    title = "A flow that waited for a time, twice for an event, and until it was cancelled:"
    report.history(title, waited)
    found = len(quarantined), len(moved), len(waited)
    if found != (1, 6, 11):
        raise NotAsExpected(
            f"There are {found[0]} dead letters, and {found[1]} and {found[2]} events of the two "
            "flows, but 1, 6 and 11 were expected."
        )


async def _play_all(
    settings: Settings, observer: Observer, scenario: Scenario, flow_id: str
) -> tuple[int, float]:
    """How many commands the stories took, and how many seconds."""
    began = time.monotonic()
    before = scenario.sent.total()
    await _together([*all_stories(scenario)])
    seconds, sent = time.monotonic() - began, scenario.sent.total() - before
    await foreigners(settings, observer, scenario, flow_id)
    return sent, seconds


async def _together(stories: Sequence[Any]) -> list[Any]:
    """What all of them return, run at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(story) for story in stories]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return [task.result() for task in tasks]
    finally:
        await end_tasks(*tasks, again_s=CLEAN_UP_S)


async def _unless_ended(what: str, child: ChildProcess, work: Any) -> None:
    """Raises DemoFailed when the process ends before the work is done."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(child.process.wait())
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DemoFailed(f"The {what} ended with code {ending.result()}:\n{child.last_words()}")
        working.result()
    except TaskflowError as error:
        if isinstance(error, DemoFailed | BrokerUnreachable):
            raise
        raise DemoFailed(f"{error} The {what}'s last words:\n{child.last_words()}") from error
    finally:
        await end_tasks(working, ending, again_s=CLEAN_UP_S)
