"""Show the main job for `taskflow demo`, from its own broker to a flow's history."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console
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
from processor.cli.common.output import console, say, table, verdict_text
from processor.cli.common.runner import Interrupted, run
from processor.cli.common.views_client import asking
from processor.cli.demo.foreign_client import foreigners, misplaced_by_crc32
from processor.cli.demo.managed_steps import killed_executor
from processor.cli.demo.observer import (
    EVENT_TIMEOUT_S,
    DemoFailed,
    Observer,
    dead_letters,
    observing,
)
from processor.cli.demo.scenarios import (
    NotAsExpected,
    Scenario,
    all_stories,
    first_story,
    waits_that_end,
)
from processor.cli.flow.event_text import print_events
from processor.cli.flow.lookup import history
from processor.client import FlowClient
from processor.embedded.broker import embedded_broker, free_port
from processor.embedded.keeper import GIVE_UP_AT, kept_running
from processor.errors import TaskflowError, install_line
from processor.runtime import end_tasks, unless_stopped
from processor.settings import Address, Settings


def show_demo(settings: Settings, *, keep: bool) -> None:
    """Show it; with `keep`, leave it up until a signal comes."""
    left_up = asyncio.Event()
    try:
        run(lambda: _demo(settings, left_up if keep else None))
    except Interrupted:
        if not left_up.is_set():
            raise
    console().print(
        "Nothing is left running. Next: `taskflow up` keeps everything on this machine."
    )


async def _demo(chosen: Settings, left_up: asyncio.Event | None) -> None:
    """`left_up` is set when all was shown and is left up; then only a signal ends it. None: it is
    not left up."""
    out = console()
    out.print("[bold]1.[/] Starting Apache Kafka, a real one, for this demo only ...")
    broker_ended = asyncio.Event()
    async with (
        embedded_broker(heap=chosen.broker_heap, cache_dir=chosen.cache_dir) as broker,
        kept_running(broker, broker_ended, say, give_up_at=1 if left_up is None else GIVE_UP_AT),
    ):
        # In the broker's own directory, which goes with it, also when we are killed.
        directory = broker.data_dir / "demo"
        settings = Settings(
            bootstrap_servers=broker.bootstrap,
            state_dir=directory / "state",
            http=None,
            views_http=Address("127.0.0.1", free_port()) if left_up is None else chosen.views_http,
        )
        await create_topics(settings)
        out.print(f"   Kafka answers at {broker.bootstrap}; the seven topics are made.")
        out.print("[bold]2.[/] Starting a worker as a process of its own ...")
        async with child_worker(environment_of(settings), directory / "worker.log") as worker:
            shows = _play_and_show(settings, out, directory, left_up)
            await unless_stopped(_unless_ended("worker", worker, shows), broker_ended)


async def _play_and_show(
    settings: Settings, out: Console, directory: Path, left_up: asyncio.Event | None
) -> None:
    """The stories, and what the views make of them; they start meanwhile."""
    if not views_installed():
        await _play(settings, out)
        await _run_executors(settings, out, directory)
        out.print(f"The views show it live: {install_line('views')}", markup=False)
        if left_up is not None:
            await _leave_up(settings, out, left_up)
        return
    environment, log = environment_of(settings), directory / "views.log"
    async with child_views(settings, environment, log) as views:
        await _unless_ended("view worker", views, _play(settings, out))
        await _unless_ended("view worker", views, _run_executors(settings, out, directory))
        if not await views.ready():
            raise DemoFailed(f"The views did not start:\n{views.last_words()}")
        out.print(f"[bold]9.[/] What the views have seen: {await _seen(settings, views)}.")
        if left_up is None:
            out.print("   To look at it: `taskflow demo --keep`.")
            return
        out.print(f"   Look at {views.url} (every flow, live).")
        await _unless_ended("view worker", views, _leave_up(settings, out, left_up))


async def _run_executors(settings: Settings, out: Console, directory: Path) -> None:
    out.print("[bold]8.[/] Handing out three steps to executors, and killing one amid its step:")
    flow_id = await killed_executor(settings, directory, environment_of(settings))
    print_events(out, [event async for event in history(settings, flow_id)])


async def _leave_up(settings: Settings, out: Console, left_up: asyncio.Event) -> None:
    out.print(f"   Kafka answers at {settings.bootstrap_servers}. Ctrl-C ends it all.")
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


async def _play(settings: Settings, out: Console) -> None:
    async with observing(settings, out) as observer:
        out.print("[bold]3.[/] Telling stories to it; these are the FlowEvents, as they come:")
        async with FlowClient(settings) as client:
            scenario, patient = Scenario(client), Scenario(client)
            await first_story(scenario)
            flow_id, waiting_id = misplaced_by_crc32(settings.partitions), str(uuid4())
            (sent, seconds), _ = await _together(
                [
                    _play_all(settings, observer, scenario, flow_id),
                    waits_that_end(patient, waiting_id, observer.event),
                ]
            )
        commands = scenario.sent + patient.sent
        expected = commands.total() + 3  # the malformed one, the misplaced one and its copy
        await observer.in_time(observer.reach(expected), expected)
        history_of = [event async for event in history(settings, flow_id)]
        history_of_waits = [event async for event in history(settings, waiting_id)]
        quarantined = [one async for one in dead_letters(settings)]
    _conclude(out, observer, commands, history_of, history_of_waits, quarantined)
    out.print(
        f"{sent} commands were answered in {seconds:.2f} s, {sent / seconds:.0f} a second: each "
        "flow's next command waited for the answer to the one before."
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


def _conclude(
    out: Console,
    observer: Observer,
    commands: Counter[str],
    events: Sequence[bytes],
    waits: Sequence[bytes],
    quarantined: Sequence[dict[str, Any]],
) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(commands.items()))
    out.print("[bold]4.[/] What became of the commands:")
    out.print(Text(f"   {kinds}; {observer.wakes} wake by the processor itself"))
    rows = [
        (verdict_text(verdict), code, str(count))
        for (verdict, code), count in sorted(observer.verdicts.items())
    ]
    out.print(table(None, ("verdict", "code", "outcomes"), rows))
    out.print("[bold]5.[/] The history of one flow, which another client created and an operator")
    out.print("   resumed and cancelled:")
    print_events(out, events)
    out.print("[bold]6.[/] The history of one that waited: until a time, for an event that did not")
    out.print("   come in time, for one that came, and until its cancellation was asked for:")
    print_events(out, waits)
    out.print("[bold]7.[/] The dead letter of what was no command, kept as it was:")
    for one in quarantined:
        out.print(Text(f"   {one['value']!s} ({one['code']}: {one['message']})"))
    found = len(quarantined), len(events), len(waits)
    if found != (1, 6, 11):
        raise NotAsExpected(
            f"There are {found[0]} dead letters, and {found[1]} and {found[2]} events of the two "
            "flows, but 1, 6 and 11 were expected."
        )


async def _together(stories: Sequence[Any]) -> list[Any]:
    """What all of them answer, told at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(story) for story in stories]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return [task.result() for task in tasks]
    finally:
        await end_tasks(*tasks)


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
        await end_tasks(working, ending)
