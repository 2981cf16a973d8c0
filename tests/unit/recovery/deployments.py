"""A partition with traffic, its tables, and what may be lost of them."""

import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from processor.adapters.sqlite import FlowTable, open_table
from processor.adapters.sqlite.readonly.dump import dump
from processor.cli.rebuild.tables import all_rows
from processor.cli.rebuild.topics import snapshots
from processor.recovery.consistent_cut import consistent_cut
from processor.recovery.rebuild import first_difference, rebuild
from processor.recovery.repair import Skip, plan_restoration, plan_skip, restore, skip
from tests.support.scripted_ports import ScriptedHistory, Stage
from tests.unit.commands import (
    create,
    finish,
    observe,
    prune,
    schedule,
    start,
    step,
    update,
)

TRAFFIC = 160
HELD = ("extend_step", "complete_step", "fail_step", "release_step")
STEPS = ("schedule_step", "schedule_step", "start_step", "start_step", *HELD, "retry_step")
ISSUED = {"issued_by": create(0)["issued_by"]}


def traffic(seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Commands of every kind of fate, resends and prunes among them."""
    chance = random.Random(seed)
    made: list[tuple[str, dict[str, Any]]] = []
    for _ in range(TRAFFIC):
        number = chance.randrange(12)
        kind = chance.choice(
            ["create", "create", "start", "update", "observe", "finish", "prune", "again", *STEPS]
        )
        if kind == "again" and made:
            made.append(chance.choice(made))
        elif kind == "prune":
            made.append(("control", prune(number)))
        elif kind in STEPS:
            run_id = f"run/{chance.randrange(5)}"
            fields: dict[str, Any] = {"attempt": chance.choice([1, 1, 2])} if kind in HELD else {}
            if kind == "fail_step":
                fields |= {"reason": "503", "retry": chance.random() < 0.7, "retry_after_ms": 0}
            issued_by = {} if kind in ("schedule_step", "retry_step") else {"issued_by": "x:1"}
            made.append(
                (
                    "commands",
                    schedule(number, run_id, input_json={"n": number})
                    if kind == "schedule_step"
                    else {**step(kind, number, run_id, **fields), **(issued_by or ISSUED)},
                )
            )
        else:
            commands = {
                "start": start(number),
                "update": update(number, revision=chance.choice([None, 1, 2])),
                "observe": observe(number, f"run/{chance.randrange(3)}"),
                "finish": finish(number),
            }
            made.append(("commands", commands.get(kind, create(number))))
    return made


async def worked(stage: Stage, seed: int = 1) -> None:
    for n, (topic, command) in enumerate(traffic(seed)):
        stage.kafka.send(command, topic=topic)
        if n % 40 == 0:
            await stage.works()
    await stage.works()


def history(stage: Stage) -> ScriptedHistory:
    return ScriptedHistory(stage.kafka, stage.script, stage.place.partition)


@asynccontextmanager
async def table_at(stage: Stage, path: Path) -> AsyncIterator[FlowTable]:
    place = stage.place
    async with open_table(
        path, partition=place.partition, prefix=place.topics.prefix, partitions=place.partitions
    ) as table:
        yield table


async def rebuilt(stage: Stage, name: str, *, from_audit: bool) -> Path:
    path = stage.state_dir.with_name(name) / "made.db"
    async with table_at(stage, path) as table:
        view = await consistent_cut(stage.place, history(stage))
        await rebuild(stage.place, table, view, from_audit=from_audit)
    return path


def difference(one: Path, other: Path) -> str | None:
    with dump(one) as here, dump(other) as there:
        found = first_difference(all_rows(here, 0), all_rows(there, 0))
    return None if found is None else str(found)


async def stopped(stage: Stage) -> str:
    """What the owner says, again and again, while it decides nothing."""
    outcomes = len(stage.kafka.outcomes)
    before = len(stage.errors)
    async with stage.running():
        errors = await stage.failed(before + 2)
    assert len(stage.kafka.outcomes) == outcomes
    assert errors[-1] == errors[-2]
    return errors[-1]


async def skipped(stage: Stage) -> Skip:
    plan = await plan_skip(stage.place, history(stage))
    assert plan is not None
    await skip(stage.place, history(stage), stage._new_writer, plan)
    assert await plan_skip(stage.place, history(stage)) is None, "it may be repeated"
    return plan


async def restored(stage: Stage) -> None:
    path = stage.state_dir.with_name("restoring") / "made.db"
    async with table_at(stage, path) as table:
        plan = await plan_restoration(
            stage.place, table, await consistent_cut(stage.place, history(stage))
        )
    assert plan is not None
    with dump(path) as rows:
        await restore(stage.place, history(stage), stage._new_writer, plan, snapshots(rows))
    shutil.rmtree(path.parent)


def lose(stage: Stage, topic: str, *, keep: int = 0) -> None:
    """The topic is recreated, or (`keep`) cut at an offset."""
    del stage.kafka.log(topic).entries[keep:]
