"""Carry out an order for many flows or steps: send a command for each, and sum up the outcomes."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from processor.cli.common.output import console, for_people, say, table, verdict_text, write_json
from processor.cli.common.progress import Bar, progress_bar
from processor.cli.common.rows import Column, print_rows, short_ids
from processor.cli.send.pipeline import IN_FLIGHT, accepted
from processor.client import CommandNotSent, FlowClient, OutcomeTimeout
from processor.contract.outcomes import Code, Outcome
from processor.ops.bulk import Order, StepTarget, Target
from processor.runtime import end_tasks
from processor.settings import Settings

SHOWN: Final = 20
"""Flows or steps of a preview, on a terminal."""


class CommandClient(Protocol):
    """What is needed of a FlowClient."""

    async def send(
        self, command: dict[str, object], *, control: bool, timeout_s: float
    ) -> Outcome: ...


class BulkOutcome(NamedTuple):
    """What came of a target: its outcome, or a sentence that says why there is none."""

    target: Target
    outcome: Outcome | None
    sentence: str


class BulkExecution:
    """An `order` for each of `targets`, on the control topic, up to IN_FLIGHT at once.

    `done` are codes of refusals that say that there is nothing left to do.
    """

    def __init__(
        self, targets: Sequence[Target], order: Order, *, done: frozenset[Code] = frozenset()
    ) -> None:
        self.targets = targets
        self._order = order
        self._done = done
        self.tally: Counter[tuple[str, str | None]] = Counter()
        """How many got which verdict and code."""
        self.skipped: list[BulkOutcome] = []
        """Those that were refused, in the order of their answers."""
        self.unanswered: list[BulkOutcome] = []
        """Those whose command was not sent, or not answered in time."""
        self._asked: set[Target] = set()

    @property
    def total(self) -> int:
        return len(self.targets)

    @property
    def left(self) -> list[Target]:
        """Those that were not sent, since no outcome came."""
        return [target for target in self.targets if target not in self._asked]

    @property
    def done(self) -> bool:
        """Whether all of it is done."""
        return not (self.skipped or self.unanswered) and len(self._asked) == self.total

    async def all(self, client: CommandClient, timeout_s: float, bar: Bar | None = None) -> None:
        """Raises what ends all of it, such as BrokerUnreachable."""
        bar = bar or Bar()
        bar.expect(self.total)
        waiting = iter(self.targets)
        asking = [
            asyncio.ensure_future(self._ask(client, waiting, timeout_s, bar))
            for _ in range(IN_FLIGHT)
        ]
        try:
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            await end_tasks(*asking)

    async def _ask(
        self, client: CommandClient, waiting: Iterator[Target], timeout_s: float, bar: Bar
    ) -> None:
        for target in waiting:
            self._asked.add(target)
            try:
                outcome = await client.send(self._order(target), control=True, timeout_s=timeout_s)
            except (OutcomeTimeout, CommandNotSent) as error:
                self.unanswered.append(BulkOutcome(target, None, str(error)))
            else:
                self._count(target, outcome)
            bar.advance(1)
            if self.unanswered:
                return  # the next ones would wait as long, for nothing

    def _count(self, target: Target, outcome: Outcome) -> None:
        self.tally[outcome.verdict.value, outcome.code and outcome.code.value] += 1
        if not accepted(outcome) and outcome.code not in self._done:
            self.skipped.append(BulkOutcome(target, outcome, outcome.message))


async def carry_out(settings: Settings, bulk: BulkExecution, timeout_s: float, what: str) -> None:
    """A person sees how far it is. Raises what ends all of it, such as BrokerUnreachable."""
    async with FlowClient(settings) as client:
        with progress_bar(what) as bar:
            await bulk.all(client, timeout_s, bar)


def sum_up(doing: BulkExecution, json: bool) -> None:
    """How many got which answer, and each flow that was not changed."""
    tally = sorted(doing.tally.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    not_asked = [BulkOutcome(target, None, "No outcome came before it.") for target in doing.left]
    skipped = [_row(one) for one in (*doing.skipped, *doing.unanswered, *not_asked)]
    noun = noun_of(doing.targets)
    if not for_people(json):
        for row in skipped:
            write_json(row)
        for (verdict, code), count in tally:
            write_json({"verdict": verdict, "code": code, f"{noun}s": count})
    else:
        counted = [(verdict_text(v), c or "", str(count)) for (v, c), count in tally]
        if counted:
            console().print(table(None, ("verdict", "code", f"{noun}s"), counted))
        if skipped:
            seen = "expected_revision" if noun == "flow" else "run_id"
            ids = short_ids(row["flow_id"] for row in skipped)
            rows = [
                (ids[row["flow_id"]], str(row[seen]), _cell(row["code"]), row["message"])
                for row in skipped
            ]
            console().print("skipped", style="bold")
            named = Column("rev" if noun == "flow" else "run", 3 if noun == "flow" else 10)
            columns = (Column("flow"), named, Column("code", 12), Column("why", 24))
            print_rows(console(), columns, rows)
    if doing.unanswered:
        say(f"{doing.unanswered[0].sentence} Is a worker running?")
        say(
            f"{counted_as(noun, len(doing.unanswered))} without an answer, "
            f"{counted_as(noun, len(doing.left))} not asked for; the same command goes on with "
            "them."
        )


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _row(one: BulkOutcome) -> dict[str, Any]:
    outcome, target = one.outcome, one.target
    return {
        "flow_id": target.flow_id,
        **(
            {"run_id": target.run_id}
            if isinstance(target, StepTarget)
            else {"expected_revision": target.revision}
        ),
        "verdict": outcome and outcome.verdict,
        "code": outcome and outcome.code,
        "message": one.sentence,
        "revision": outcome and outcome.revision,
        "status": outcome and outcome.status,
    }


def noun_of(targets: Sequence[Target]) -> str:
    """`flow` or `step`."""
    return "step" if targets and isinstance(targets[0], StepTarget) else "flow"


def counted_as(noun: str, count: int) -> str:
    """`1 flow`, `2 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
