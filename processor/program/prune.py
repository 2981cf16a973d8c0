"""`taskflow prune`: removing by hand what ended long ago, as the processor does by itself."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import typer

from processor.adapters.sqlite.queries import Ended
from processor.client import CommandNotSent, FlowClient, OutcomeTimeout
from processor.program.flow import login
from processor.program.flows import list_ended
from processor.program.options import duration_ms
from processor.program.output import (
    console,
    for_people,
    print_rows,
    say,
    somebody_to_ask,
    status_text,
    table,
    verdict_text,
    write_json,
)
from processor.program.running import WrongUse, run, settings_and_logs
from processor.program.send import IN_FLIGHT, accepted
from processor.settings import Settings
from schemas.outcomes import Code, Outcome

TELL_EVERY_S = 1.0


def prune(
    older_than: str = typer.Option(
        ..., "--older-than", help="Flows whose last change is longer ago: 30d, 12h; 0s means all."
    ),
    owner: str | None = typer.Option(None, "--owner", help="Only flows of this session key."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only list them."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    timeout: str = typer.Option("30s", "--timeout", help="How long to await each outcome."),
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Remove flows that have ended, with their steps. Their history stays on the audit topic.

    A worker does so by itself after TASKFLOW_RETAIN_TERMINAL; this is for doing it earlier, or
    where that is off. How long ago a flow's last change is, is told by this machine's clock.

    Flows are looked for as by `flow list`. Each gets a `prune` on the control topic, as
    `operator:{login}`, which needs a running worker. Prints how many got which answer; one
    that is gone already (not_found) is done, any other refusal is exit code 1. It asks before;
    in a pipe it takes --yes. Running it again goes on where it was interrupted.

    Example: `taskflow prune --older-than 30d --dry-run`

    Settings: as for `flow list`.
    """
    age_ms = duration_ms(older_than, "--older-than")
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    if not (dry_run or yes or somebody_to_ask()):
        raise WrongUse("There is no terminal to ask at: take --yes, or --dry-run to look first.")
    settings = settings_and_logs(quiet=True)
    before_ms = max(time.time_ns() // 1_000_000 - age_ms, 0)
    ended = run(lambda: list_ended(settings, owner=owner, before_ms=before_ms))
    if dry_run:
        _list(ended, json)
        say(f"{_flows(len(ended))} would be pruned.")
        return
    if not ended:
        say("There is nothing to prune.")
        return
    if not yes and not typer.confirm(
        f"Prune {_flows(len(ended))}? This cannot be undone.", err=True
    ):
        say("Nothing was pruned.")
        raise typer.Exit(1)
    pruning = Pruning([flow.flow_id for flow in ended], by=f"operator:{login()}")
    try:
        run(lambda: _prune(settings, pruning, timeout_s))
    finally:
        _sum_up(pruning, json)
    if not pruning.done:
        raise typer.Exit(1)


class Client(Protocol):
    """What is needed of a FlowClient."""

    async def send(
        self, command: dict[str, object], *, control: bool, timeout_s: float
    ) -> Outcome: ...


class Pruning:
    """A `prune` for each of `flow_ids`, up to IN_FLIGHT at once, and what came of them."""

    def __init__(self, flow_ids: Sequence[str], *, by: str) -> None:
        self._flow_ids = flow_ids
        self._by = by
        self.answers: Counter[tuple[str, str | None]] = Counter()
        """How many flows got which verdict and code."""
        self.unanswered: list[str] = []
        """Sentences: why a command was not sent, or not answered in time."""
        self._refused = False

    @property
    def total(self) -> int:
        return len(self._flow_ids)

    @property
    def left(self) -> int:
        """Flows that were not asked for, since nobody answered."""
        return self.total - self.answers.total() - len(self.unanswered)

    @property
    def done(self) -> bool:
        """Whether all of them are gone."""
        return not (self._refused or self.unanswered or self.left)

    async def all(self, client: Client, timeout_s: float) -> None:
        """Raises what ends all of it, such as BrokerUnreachable."""
        waiting = iter(self._flow_ids)
        asking = [
            asyncio.ensure_future(self._ask(client, waiting, timeout_s)) for _ in range(IN_FLIGHT)
        ]
        try:
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, client: Client, waiting: Iterator[str], timeout_s: float) -> None:
        for flow_id in waiting:
            command: dict[str, object] = {
                "kind": "prune",
                "flow_id": flow_id,
                "issued_by": self._by,
            }
            try:
                outcome = await client.send(command, control=True, timeout_s=timeout_s)
            except (OutcomeTimeout, CommandNotSent) as error:
                self.unanswered.append(str(error))
            else:
                self._hear(outcome)
            if self.unanswered:
                return  # the next ones would wait as long, for nothing

    def _hear(self, outcome: Outcome) -> None:
        self.answers[outcome.verdict.value, outcome.code and outcome.code.value] += 1
        if not accepted(outcome) and outcome.code is not Code.NOT_FOUND:
            self._refused = True


async def _prune(settings: Settings, pruning: Pruning, timeout_s: float) -> None:
    async with FlowClient(settings) as client, _progress(pruning):
        await pruning.all(client, timeout_s)


@asynccontextmanager
async def _progress(pruning: Pruning) -> AsyncIterator[None]:
    """A person sees one line that changes."""
    if not sys.stderr.isatty():
        yield
        return

    async def tell() -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            sys.stderr.write(f"\r\x1b[K{pruning.answers.total():,} of {pruning.total:,} flows")
            sys.stderr.flush()

    telling = asyncio.ensure_future(tell())
    try:
        yield
    finally:
        telling.cancel()
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _list(ended: Sequence[Ended], json: bool) -> None:
    if not for_people(json):
        for flow in ended:
            write_json(
                {
                    "flow_id": flow.flow_id,
                    "status": flow.status,
                    "updated_at": flow.updated_at,
                }
            )
    elif ended:
        rows = [
            (flow.flow_id, status_text(flow.status), flow.updated_at[:19].replace("T", " "))
            for flow in ended
        ]
        print_rows(console(), ("id", "status", "updated"), rows)


def _sum_up(pruning: Pruning, json: bool) -> None:
    answers = sorted(pruning.answers.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    if for_people(json):
        rows = [
            (verdict_text(verdict), code or "", str(count)) for (verdict, code), count in answers
        ]
        if rows:
            console().print(table(None, ("verdict", "code", "flows"), rows))
    else:
        for (verdict, code), count in answers:
            write_json({"verdict": verdict, "code": code, "flows": count})
    if pruning.unanswered:
        say(f"{pruning.unanswered[0]} Is a worker running?")
        say(
            f"{_flows(len(pruning.unanswered))} without an answer, {_flows(pruning.left)} not "
            "asked for; the same command goes on with them."
        )


def _flows(count: int) -> str:
    return f"{count:,} flow{'' if count == 1 else 's'}"
