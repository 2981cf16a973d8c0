"""Keep Faust's tables in the view's database instead of changelog topics.

A changelog is written beside the rows and not with them, so that a crash between the two counts an
event twice or never. What these tables hold is written in the transaction of the rows and of the
positions; recovery is reading it back.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final, cast

import faust
import orjson
from faust.stores.memory import Store as MemoryStore
from faust.tables.manager import TableManager

NO_WINDOW: Final = 0


class Store(MemoryStore[Any, Any]):
    """In memory, with what the database does not have yet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.unwritten: dict[Any, Any] = {}

    def note(self, key: Any, value: Any) -> None:
        self.unwritten[key] = value


class ViewTable(faust.Table[Any, Any]):
    """Keyed by partition; values are JSON objects."""

    def _new_store(self) -> Store:
        return Store("memory://", self.app, self, table_name=self.name, loop=self.loop)

    @property
    def store(self) -> Store:
        return cast(Store, self.data)

    def partition_for_key(self, key: Any) -> int:
        partition: int = key[0] if isinstance(key, tuple) else key
        return partition

    def send_changelog(  # type: ignore[override]
        self, partition: int | None, key: Any, value: Any, **_: Any
    ) -> Any:
        """Into the next transaction, instead of to Kafka."""
        self.store.note(key, value)
        return SimpleNamespace(message=SimpleNamespace(partition=partition))

    async def on_window_close(self, key: Any, value: Any) -> None:
        """A window has expired: its row goes with the next transaction."""
        self.store.note(key, None)
        await super().on_window_close(key, value)

    def add(self, partition: int, value: Mapping[str, Any], at_s: float | None) -> None:
        """Set the value of a partition, in the window of `at_s`."""
        if at_s is None:
            self[partition] = value
        else:
            self._set_windowed(partition, value, at_s)

    def at(self, partition: int, at_s: float | None) -> Mapping[str, Any] | None:
        window = self.window
        key = partition if window is None or at_s is None else (partition, window.current(at_s))
        return cast(Mapping[str, Any] | None, self.data.get(key))

    def take_unwritten(self) -> dict[tuple[str, int, int], bytes | None]:
        """What the next transaction is to write."""
        rows = {}
        for key, value in self.store.unwritten.items():
            partition, start = (key, NO_WINDOW) if isinstance(key, int) else (key[0], key[1][0])
            rows[self.name, partition, int(start)] = None if value is None else orjson.dumps(value)
        return rows

    def written(self) -> None:
        self.store.unwritten.clear()

    def load(self, rows: list[tuple[int, int, Mapping[str, Any]]]) -> None:
        """Forget all, and hold these: partition, the window's beginning in s, value."""
        self.data.clear()
        self.store.unwritten.clear()
        self._partition_timestamps.clear()
        self._partition_timestamp_keys.clear()
        for partition, start_s, value in rows:
            if self.window is None:
                self.data[partition] = value
                continue
            key = (partition, self.window.current(start_s))
            self.data[key] = value
            self._maybe_set_key_ttl(key, partition)


class ViewTables(TableManager):
    """Without changelog topics: there is nothing to recover from Kafka."""

    def add(self, table: Any) -> Any:
        assert table.name is not None
        self[table.name] = table
        return table

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        for table in self.values():
            await table.maybe_start()
        self._tables_registered.set()
