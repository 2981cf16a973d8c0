"""Crash points: what TASKFLOW_FAULTS means, and that nothing of them is there without it."""

import subprocess
import sys
from pathlib import Path

import pytest

from processor.adapters.sqlite import TableFailed
from processor.engine.rows import Changes
from processor.settings import BadSetting, load_settings
from processor.testing.failpoints import FailpointWrappers
from processor.testing.failpoints.points import (
    POINTS,
    Failpoint,
    FailpointAction,
    Failpoints,
    Injected,
    parse_faults,
)
from tests.unit.adapters.sqlite.tables import at, contents, flow_row, opened


def test_a_point_an_action_and_at_which_time() -> None:
    assert parse_faults("K6:kill@3,K8:delay=2s@*,K8:full,K11:stop") == (
        Failpoint("K6", FailpointAction.KILL, 3),
        Failpoint("K8", FailpointAction.DELAY, None, 2.0),
        Failpoint("K8", FailpointAction.FULL, 1),
        Failpoint("K11", FailpointAction.STOP, 1),
    )


@pytest.mark.parametrize("point", POINTS)
def test_every_point_can_be_named(point: str) -> None:
    assert parse_faults(f"{point}:kill") == (Failpoint(point, FailpointAction.KILL),)


@pytest.mark.parametrize(
    "text",
    ["K14:kill", "K1", "K1:burn", "K1:full", "K5:raise", "K1:kill@0", "K1:delay", "K1,"],
)
def test_what_means_nothing_is_a_bad_setting(text: str) -> None:
    with pytest.raises(ValueError, match="no crash point"):
        parse_faults(text)
    with pytest.raises(BadSetting, match="must be crash points such as"):
        load_settings({"TASKFLOW_FAULTS": text})


async def test_a_point_breaks_at_its_time_and_at_no_other() -> None:
    points = Failpoints(parse_faults("K1:raise@2,K3:raise@*"))

    await points.reach("K1")
    await points.reach("K2")
    with pytest.raises(Injected, match="K1"):
        await points.reach("K1")
    await points.reach("K1")
    for _ in range(2):
        with pytest.raises(Injected, match="K3"):
            await points.reach("K3")


def test_unset_nothing_of_it_is_even_imported() -> None:
    output = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, processor.worker.composition as b;"
            "from processor.settings import Settings;"
            "assert b._fault_kit(Settings()) is None;"
            "print(sorted(m for m in sys.modules if m.startswith('processor.testing.failpoints')))",
        ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.strip() == "[]"


async def test_a_full_disk_amid_a_write_leaves_nothing_of_it_and_the_next_one_is_whole(
    tmp_path: Path,
) -> None:
    rows = [flow_row(number, goal="x" * 4000) for number in range(1, 50)]
    async with FailpointWrappers("K8:full@2").table(lambda: opened(tmp_path))() as table:
        await table.write(Changes(inserted=rows[:1]), before=None, after=at(1))
        with pytest.raises(TableFailed, match="full"):
            await table.write(Changes(inserted=rows[1:]), before=at(1), after=at(2))

        assert await table.checkpoint() == at(1)
        assert await table.count_flows() == 1
        assert await table.untouched()
        await table.write(Changes(inserted=rows[1:]), before=at(1), after=at(2))
        assert await table.count_flows() == len(rows)


@pytest.mark.parametrize(("point", "written"), [("K8", False), ("K9", True)])
async def test_an_error_before_and_behind_the_tables_commit(
    tmp_path: Path, point: str, written: bool
) -> None:
    async with FailpointWrappers(f"{point}:raise").table(lambda: opened(tmp_path))() as table:
        with pytest.raises(Injected):
            await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
        assert await table.checkpoint() == (at(1) if written else None)
        assert await table.count_flows() == int(written)


async def test_a_checkpoint_cut_short_leaves_a_whole_table(tmp_path: Path) -> None:
    """Nothing of ours runs in it, so what it leaves is made: all of the log, some of the pages."""
    rows = [flow_row(number, goal="x" * 2000) for number in range(1, 200)]
    home = tmp_path / "home"
    async with opened(home) as table:
        await table.write(Changes(inserted=rows), before=None, after=at(1))
        before = contents(home)
        await table._connection.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
        after = contents(home)
    (name,) = (name for name in before if name.endswith(".db"))
    assert len(after[name]) > len(before[name]), "nothing was moved into the file"
    page = 4096
    for pages in (1, 7, len(after[name]) // page - 1):
        torn = tmp_path / f"torn{pages}"
        torn.mkdir()
        for file, content in before.items():
            if not file.endswith("-shm"):
                (torn / file).write_bytes(content)
        kept = after[name][: pages * page] + before[name][pages * page :]
        (torn / name).write_bytes(kept)

        async with opened(torn) as table:
            assert await table.checkpoint() == at(1)
            assert len(await table.flows([row.flow.id for row in rows])) == len(rows)
