"""`taskflow replay to`: publish a range of the audit again, to another topic."""

import re
import time
from collections.abc import Sequence
from typing import Final

import typer

from processor.adapters.kafka.client_config import compression_type, connection_options
from processor.adapters.kafka.errors import explained
from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import JSON, flow_id_of, since_ms
from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.progress import Bar, progress_bar
from processor.cli.common.runner import WrongUse, run, settings_and_logs
from processor.cli.replay.plan import ReplayOrder, ReplayPlan, group_of, look, streams
from processor.cli.replay.republisher import Republisher
from processor.client.reader import count_partitions
from processor.contract.events import EventKind
from processor.contract.rights import Operation
from processor.contract.topics import Topics
from processor.ops.replay.republish import republish
from processor.ops.replay.selection import Selection, run_id
from processor.settings import Settings

_OFFSETS: Final = re.compile(r"([0-9]{1,9}):(?!-$)([0-9]{0,18})-([0-9]{0,18})")

TOPIC = typer.Argument(..., help="Where to: a topic that is there, with its own time stamps.")
SINCE = typer.Option(None, "--since", help="Events from this time on: RFC 3339, or 10m.")
UNTIL = typer.Option(None, "--until", help="Events before this time; by default, up to now.")
OFFSETS = typer.Option(
    None,
    "--offsets",
    help="Of a partition only these offsets of the audit: 0:100-200, 0:100- or 0:-200, without "
    "the last; may be repeated, and partitions that are not named are left out.",
)
FLOW = typer.Option(None, "--flow", help="Only this flow; may be repeated.")
OWNER = typer.Option(None, "--owner", help="Only flows of this session key; may be repeated.")
KIND = typer.Option(None, "--kind", help="Only events of this kind; may be repeated.")
RATE = typer.Option(None, "--rate", min=0.1, help="At most so many events a second.")
RUN = typer.Option(
    None, "--run", help="A name for this run; the same one goes on, another begins anew."
)


def to(
    topic: str = TOPIC,
    since: str | None = SINCE,
    until: str | None = UNTIL,
    offsets: list[str] | None = OFFSETS,
    flow: list[str] | None = FLOW,
    owner: list[str] | None = OWNER,
    kind: list[EventKind] | None = KIND,
    rate: float | None = RATE,
    run_name: str | None = RUN,
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = JSON,
) -> None:
    """Write events of the audit once more, to a topic of a consumer's own, in their order.

    Key, value, time stamp, chain and trace are the original ones; the header `taskflow-replay`,
    run/topic/partition/offset, says which run and which record an event repeats. Partitions are
    kept where the topic has as many as the audit, else events go by their key; a flow's events
    stay in their order.

    A run is named by what was asked for, or by --run. Events and how far the run is are written
    in the same transactions: killed and started again with the same options, it goes on behind
    what is there, and readers of committed records see nothing twice. Once it is done, the same
    command writes what came since.

    It shows what it would write and asks; in a pipe it takes --yes.

    Example: `taskflow replay to billing.rebuild --since 2026-11-01T00:00:00Z --kind finished`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_COMPRESSION,
    TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    ask = Confirmation(dry_run, yes)
    settings = settings_and_logs(quiet=True)
    if topic in dict(Topics(settings.topic_prefix)):
        raise WrongUse(f"{topic} is one of taskflow's own topics; events are replayed to others.")
    selection = Selection(
        frozenset(map(flow_id_of, flow or ())),
        frozenset(owner or ()),
        frozenset(map(str, kind or ())),
    )
    # By what was typed: `10m` names the same run in an hour, too.
    asked = (settings.topic_prefix, topic, since, until, sorted(offsets or ()))
    chosen = (sorted(selection.flow_ids), sorted(selection.owners), sorted(selection.kinds))
    order = ReplayOrder(
        topic,
        selection,
        None if since is None else since_ms(since),
        None if until is None else since_ms(until, "--until"),
        None if not offsets else bounds_of(offsets),
        run_name or run_id(*asked, *chosen),
    )
    plan = run(lambda: look(settings, order, count=ask.shows))
    if ask.shows:
        _show_plan(order, plan, json, dry_run)
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
