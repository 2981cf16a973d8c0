"""Publish a range of the audit again, to another topic, for `taskflow replay to`."""

import re
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.adapters.kafka.client_config import compression_type, connection_options
from processor.adapters.kafka.errors import explained
from processor.cli.common.confirm import Confirmation
from processor.cli.common.options import since_ms
from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.progress import Bar, progress_bar
from processor.cli.common.runner import WrongUse, run
from processor.cli.flow.flow_ids import flow_id_at
from processor.cli.replay.plan import ReplayOrder, ReplayPlan, group_of, look, streams
from processor.cli.replay.republisher import Republisher
from processor.contract.rights import Operation
from processor.contract.topics import Topics
from processor.ops.replay.republish import republish
from processor.ops.replay.selection import Selection, run_id
from processor.settings import Settings

_OFFSETS: Final = re.compile(r"([0-9]{1,9}):(?!-$)([0-9]{0,18})-([0-9]{0,18})")


class Asked(NamedTuple):
    """What was typed."""

    topic: str
    since: str | None
    until: str | None
    offsets: Sequence[str]
    flows: Sequence[str]
    owners: Sequence[str]
    kinds: Sequence[str]
    run: str | None


def replay_to(
    settings: Settings, asked: Asked, rate: float | None, ask: Confirmation, *, json: bool
) -> None:
    """Show what would be written, confirm it and write it. Raises WrongUse, Refused."""
    topic = asked.topic
    if topic in dict(Topics(settings.topic_prefix)):
        raise WrongUse(f"{topic} is one of taskflow's own topics; events are replayed to others.")
    selection = Selection(
        frozenset(flow_id_at(settings, flow) for flow in asked.flows),
        frozenset(asked.owners),
        frozenset(asked.kinds),
    )
    order = ReplayOrder(
        topic,
        selection,
        None if asked.since is None else since_ms(asked.since),
        None if asked.until is None else since_ms(asked.until, "--until"),
        bounds_of(asked.offsets) if asked.offsets else None,
        asked.run or _run_of(settings, asked, selection),
    )
    plan = run(lambda: look(settings, order, count=ask.shows))
    if ask.shows:
        _show_plan(order, plan, json, ask.dry_run)
    if not ask.before(f"Write them to {topic}?", "Nothing was written."):
        return
    began_s = time.perf_counter()
    with progress_bar("replaying") as bar:
        replayed, plan = run(lambda: _replay(settings, order, rate, bar))
    seconds = time.perf_counter() - began_s
    if for_people(json):
        say(f"{replayed:,} events in {seconds:.1f} s; run {order.run} is done.")
    else:
        write_json(
            {
                "run": order.run,
                "topic": topic,
                "replayed": replayed,
                "positions": {str(p): one.end for p, one in sorted(plan.ranges.items())},
                "seconds": round(seconds, 3),
            }
        )


def _run_of(settings: Settings, asked: Asked, selection: Selection) -> str:
    """The name of the run, by what was typed: `10m` names the same run in an hour, too."""
    what = (settings.topic_prefix, asked.topic, asked.since, asked.until, sorted(asked.offsets))
    chosen = (sorted(selection.flow_ids), sorted(selection.owners), sorted(selection.kinds))
    return run_id(*what, *chosen)


def bounds_of(texts: Sequence[str]) -> dict[int, tuple[int, int | None]]:
    """Offsets by partition. Raises WrongUse."""
    bounds: dict[int, tuple[int, int | None]] = {}
    for text in texts:
        found = _OFFSETS.fullmatch(text)
        if found is None:
            raise WrongUse(f"--offsets is {text!r}, which is not like 0:100-200, 0:100- or 0:-200.")
        partition, start, end = found.groups()
        bounds[int(partition)] = int(start or 0), int(end) if end else None
    return bounds


async def _replay(
    settings: Settings, order: ReplayOrder, rate: float | None, bar: Bar
) -> tuple[int, ReplayPlan]:
    audit = Topics(settings.topic_prefix).audit
    counts = await count_partitions(settings, [audit])
    counts |= await count_partitions(settings, [order.topic], Operation.WRITE)
    republisher = Republisher(
        connection_options(settings, "replay"),
        source=audit,
        target=order.topic,
        group=group_of(settings, order.run),
        partitions=(counts[audit], counts[order.topic]),
        compression=compression_type(settings),
    )
    try:
        with explained(settings):
            await republisher.start()
            # Only now: what a killed one had under way is decided.
            plan = await look(settings, order, count=False)
            bar.expect(sum(one.end - one.past for one in plan.ranges.values()))
            async with streams(settings, bar) as open_stream:
                done = await republish(
                    plan.ranges,
                    order.selection,
                    open_stream,
                    republisher,
                    order.run,
                    per_s=rate,
                    written=bar.count,
                )
    finally:
        await republisher.close()
    return done.replayed, plan


def _show_plan(order: ReplayOrder, plan: ReplayPlan, json: bool, dry_run: bool) -> None:
    if not for_people(json):
        if dry_run:
            write_json(
                {
                    "run": order.run,
                    "topic": order.topic,
                    "events": plan.events,
                    "first": plan.first,
                    "last": plan.last,
                    "ranges": {
                        str(p): {"start": one.start, "end": one.end, "resumed": p in plan.positions}
                        for p, one in sorted(plan.ranges.items())
                    },
                }
            )
        return
    rows = [
        (str(p), f"{one.start:,}", f"{one.end:,}", "goes on" if p in plan.positions else "begins")
        for p, one in sorted(plan.ranges.items())
    ]
    console().print(table(None, ("partition", "from", "up to", "run"), rows))
    when = f", {plan.first} to {plan.last}" if plan.first else ""
    say(f"{plan.events:,} events{when}, to {order.topic}; run {order.run}.")
