"""`taskflow rebuild --skip-lost` and `--restore-state`: repair what a partition stopped for."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from processor.adapters.sqlite import table_path
from processor.adapters.sqlite.readonly.dump import Dump, dump
from processor.cli.common.confirm import Confirmation
from processor.cli.common.history import open_history
from processor.cli.common.output import for_people, say
from processor.cli.common.runner import run
from processor.cli.rebuild.common import ProgressDisplay, opened, place_of, progress_line, writers
from processor.contract.topics import Topics
from processor.engine.batch import Outgoing
from processor.engine.ports import OffsetRange
from processor.engine.rows import Position
from processor.recovery.consistent_cut import consistent_cut
from processor.recovery.repair import Restoration, Skip, plan_restoration, plan_skip, restore, skip
from processor.settings import Settings

FROM_TO = ("from", "to")


def skip_lost_commands(
    settings: Settings, partitions: Sequence[int], show: ProgressDisplay, ask: Confirmation
) -> None:
    """Let partitions go on behind commands that are gone."""
    plans = run(lambda: _plan_skips(settings, partitions))
    if not plans:
        say("Nothing is lost.")
        return
    rows: list[dict[str, Any]] = [
        {
            "partition": partition,
            "lost": [one.sentence for one in plan.lost],
            "from": _offsets(plan.was),
            "to": _offsets(plan.to),
        }
        for partition, plan in plans.items()
    ]
    if for_people(show.json):
        for row in rows:
            row |= {name: ", ".join(f"{t} {n}" for t, n in row[name].items()) for name in FROM_TO}
    show.all(rows, ["partition", *FROM_TO, "lost"])
    say("What was lost will never be decided, nor answered.")
    if ask.before("Go on behind it?"):
        run(lambda: _skip(settings, plans))
        say(f"{_partitions(len(plans))} can go on; a worker that runs does so by itself.")


def _offsets(position: Position) -> dict[str, int]:
    return {"commands": position.commands, "control": position.control}


def _partitions(count: int) -> str:
    return f"{count} partition{'' if count == 1 else 's'}"


async def _plan_skips(settings: Settings, partitions: Sequence[int]) -> dict[int, Skip]:
    plans = {}
    for partition in partitions:
        async with open_history(settings, partition, "rebuild") as history:
            plan = await plan_skip(place_of(settings, partition), history)
        if plan is not None:
            plans[partition] = plan
    return plans


async def _skip(settings: Settings, plans: Mapping[int, Skip]) -> None:
    for partition, plan in plans.items():
        async with (
            open_history(settings, partition, "rebuild") as history,
            writers(settings, partition) as new_writer,
        ):
            await skip(place_of(settings, partition), history, new_writer, plan)


def restore_state_topic(
    settings: Settings, partition: int, show: ProgressDisplay, ask: Confirmation
) -> None:
    """Write a partition of `state` again."""
    with tempfile.TemporaryDirectory(prefix="taskflow-") as scratch:
        built = table_path(Path(scratch), settings.topic_prefix, partition)
        plan = run(lambda: _plan_restoration(settings, partition, built))
        if plan is None:
            say(f"Nothing was ever decided on partition {partition}.")
            return
        with dump(built) as rows:
            flows, steps, _ = rows.counts()
            row = {
                "partition": partition,
                "flows": flows,
                "steps": steps,
                "tombstones": len(plan.tombstones),
                **plan.position._asdict(),
            }
            show.all([row], list(row))
            topic = Topics(settings.topic_prefix).state
            say(f"They would be written to {topic}, and then the cursor.")
            if ask.before(f"Write partition {partition} of it again?"):
                run(lambda: _restore(settings, partition, plan, rows))
                say(f"Partition {partition} of {topic} is rewritten.")


async def _plan_restoration(settings: Settings, partition: int, built: Path) -> Restoration | None:
    place = place_of(settings, partition)
    async with open_history(settings, partition, "rebuild") as history, progress_line() as progress:
        view = await consistent_cut(place, history, progress.advance)
        offset_ranges = [
            view.offset_ranges[topic] for topic in (place.topics.audit, place.topics.state)
        ]
        progress.begin(f"partition {partition}: folding", offset_ranges)
        async with opened(settings, partition, built) as made:
            return await plan_restoration(place, made, view)


async def _restore(settings: Settings, partition: int, plan: Restoration, rows: Dump) -> None:
    async with (
        open_history(settings, partition, "rebuild") as history,
        writers(settings, partition) as new_writer,
        progress_line() as progress,
    ):
        flows, steps, _ = rows.counts()
        offset_range = OffsetRange(0, flows + steps + len(plan.tombstones))
        progress.begin(f"partition {partition}: writing", [offset_range])
        place = place_of(settings, partition)
        await restore(place, history, new_writer, plan, snapshots(rows), progress.advance)


def snapshots(rows: Dump) -> Iterator[Outgoing]:
    """All of a table as it stands on `state`."""
    for flow_id, (doc, _, last_event_id, chain, *_) in rows.flows():
        value = f'{{"flow":{doc},"last_event_id":{last_event_id},"chain":"{chain}"}}'
        yield Outgoing(flow_id.encode(), value.encode(), ())
    for key, (doc, *_) in rows.steps():
        yield Outgoing(key.encode(), f'{{"step":{doc}}}'.encode(), ())
