"""The local table: one SQLite file per partition, a fold of its topics.

`files.open_table` opens it, `table.FlowTable` is it, `readonly` looks on, `lock` keeps a second
worker out. README.md says what was decided and measured.
"""

from processor.adapters.sqlite.errors import (
    StateDirInUse,
    TableConflict,
    TableCorrupt,
    TableFailed,
)
from processor.adapters.sqlite.files import open_table, table_path
from processor.adapters.sqlite.lock import state_dir_lock, table_lock
from processor.adapters.sqlite.table import FlowTable

__all__ = [
    "FlowTable",
    "StateDirInUse",
    "TableConflict",
    "TableCorrupt",
    "TableFailed",
    "open_table",
    "state_dir_lock",
    "table_lock",
    "table_path",
]
