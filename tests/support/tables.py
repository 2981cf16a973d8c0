"""Reading of the tables that workers have written."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from processor.adapters.sqlite import TableCorrupt, TableFailed
from processor.adapters.sqlite.readonly import queries
from processor.ops.verify.ports import TableFlow, TablePosition, TableProblem, TableStep
from processor.testing.memory.deployment import TableContents


def read_tables(state_dirs: Iterable[Path], prefix: str) -> list[TableContents]:
    """All tables of `prefix`, also while workers write them; those that are just being made, or
    thrown away, are left out."""
    found: list[TableContents] = []

    def take(partition: int, path: Path, whole: queries.Whole) -> None:
        table = TableContents(
            partition,
            TablePosition(str(path), whole.partitions, *whole.position, whole.restored),
            [TableFlow(*row) for row in whole.flows],
            [TableStep(*row) for row in whole.steps],
        )
        read.append(table)

    for state_dir in state_dirs:
        for partition, path in queries.tables(state_dir, prefix).items():
            read: list[TableContents] = []
            try:
                queries.whole(path, partial(take, partition, path))
            except TableFailed:
                continue
            except TableCorrupt as error:
                nowhere = TablePosition(str(path), 0, -1, -1, -1, restored=False)
                read = [
                    TableContents(
                        partition, nowhere, problem=TableProblem(str(error), damaged=True)
                    )
                ]
            found += read[-1:]
    return found
