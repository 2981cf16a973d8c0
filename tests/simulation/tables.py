"""Tables in memory whose owner may be gone before or after each write."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

from processor.adapters.sqlite.errors import TableFailed
from processor.engine.rows import Changes, Checkpoint, FlowRow, RestoreChunk
from processor.testing.memory.table import Content, ModelFile, ModelTable
from tests.simulation.ports import ProcessLife
from tests.support.moments import Fault, Op


class DiskFile(ModelFile):
    """A file that has been in other states, which may come back."""

    def __init__(self) -> None:
        super().__init__()
        self.past: list[Content] = []
        self.user: object = None
        """Which worker has it open."""

    def in_use(self, by: object) -> bool:
        """Whether the same worker has it open already. A dead one's hand is not on it any more."""
        return self.user is by


class SimTable(ModelTable):
    """A table whose owner may be gone before or after each write."""

    _file: DiskFile

    def __init__(self, file: DiskFile, life: ProcessLife) -> None:
        super().__init__(file)
        self._life = life
        self._recovered = False

    async def flows(self, ids: Sequence[str]) -> dict[str, FlowRow]:
        fault = await self._life.at(Op.LOAD)
        if fault is Fault.TABLE_READ_FAILS:
            raise TableFailed("the table cannot be read: disk I/O error")
        if fault is Fault.TABLE_CORRUPT:
            self.distrust("a row is not what was written")
        return await super().flows(ids)

    async def armed(self) -> int:
        # Asked once a takeover has come to its end.
        self._recovered = True
        return await super().armed()

    async def untouched(self) -> bool:
        if await self._life.at(Op.TOUCH) is Fault.OTHER_WRITER:
            meddle(self._file, self._life.rng)
        return await super().untouched()

    async def write(
        self, changes: Changes, *, before: Checkpoint | None, after: Checkpoint
    ) -> None:
        fault = await self._life.at(Op.WRITE if self._recovered else Op.RECOVER)
        if fault is Fault.TABLE_WRITE_FAILS:
            raise TableFailed("the table cannot be written: database or disk is full")
        old = self._file.content
        await super().write(changes, before=before, after=after)
        self._file.past.append(old)
        await self._life.at(Op.WRITTEN)

    async def restore(self, chunk: RestoreChunk) -> None:
        if await self._life.at(Op.RECOVER) is Fault.TABLE_WRITE_FAILS:
            raise TableFailed("the table cannot be written: database or disk is full")
        await super().restore(chunk)
        await self._life.at(Op.WRITTEN)

    async def end_restore(self, after: Checkpoint) -> None:
        if await self._life.at(Op.RECOVER) is Fault.TABLE_WRITE_FAILS:
            raise TableFailed("the table cannot be written: database or disk is full")
        await super().end_restore(after)
        await self._life.at(Op.WRITTEN)


def meddle(file: DiskFile, rng: Random) -> None:
    """Another process commits to the file: rows go, or all is as it was some time ago."""
    old = file.content
    if file.past and rng.random() < 0.5:
        file.content = rng.choice(file.past[-5:])
    else:
        kept = {i: row for i, row in old.flows.items() if rng.random() < 0.5}
        file.content = Content(old.checkpoint, kept, old.steps, old.ledger)
    file.version += 1


@asynccontextmanager
async def open_table(
    disk: dict[int, DiskFile], partition: int, life: ProcessLife, kind: type[SimTable] = SimTable
) -> AsyncIterator[SimTable]:
    """The file of a partition, made if missing; removed in the end if it is doubted."""
    if await life.at(Op.OPEN) is Fault.OPEN_FAILS:
        raise TableFailed("the table could not be used: unable to open database file")
    file = disk.setdefault(partition, DiskFile())
    assert not file.in_use(life), "two of one worker have a table open"
    file.user = life
    table = kind(file, life)
    try:
        yield table
    finally:
        if file.user is life:
            file.user = None
        if table.doubted and disk.get(partition) is file:
            disk[partition] = DiskFile()
