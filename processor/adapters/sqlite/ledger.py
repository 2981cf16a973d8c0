"""The ledger of a table: rows appended by generation, and filters in memory that find them.

An index on random keys costs a page of the log for each row once it is larger than the cache. So a
row is indexed by the number of its generation and 32 bits of its key, and all inserts meet in the
pages of the newest generation. A full generation keeps a filter, of two bits a key, which says
whether it may hold a key: a command that is new, as nearly all are, is not looked for in the table.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import compress
from operator import and_
from struct import Struct
from typing import Any, Final
from zlib import crc32

from processor.adapters.sqlite.errors import TableCorrupt

GENERATION_MIN_ROWS: Final = 2**15
GENERATIONS: Final = 16
"""A new generation has room for a 16th of all entries, so that there are few."""
BITS_PER_ROW: Final = 32
"""With two bits set a row, 0.4 % of the keys that are not there seem to be, in each generation."""
ROW_WIDTH: Final = 4
"""Values of a row: its number, its tag, the entry of fixed width, details as JSON or NULL."""
TAG_BITS: Final = 32
TAG_MASK: Final = 2**TAG_BITS - 1

LOAD_GENERATIONS: Final = (
    "SELECT number, last_n, newest_ms, crc, bits FROM generation ORDER BY number"
)
LOAD_CURRENT: Final = "SELECT n, tag, entry FROM ledger WHERE n > ? ORDER BY n"
LOAD_OLDEST: Final = "SELECT min(n) FROM ledger"
SEAL: Final = "INSERT INTO generation (number, last_n, newest_ms, crc, bits) VALUES (?, ?, ?, ?, ?)"
FORGET_ROWS: Final = "DELETE FROM ledger WHERE n <= ?"
FORGET_GENERATION: Final = "DELETE FROM generation WHERE number = ?"

Words = tuple[int, int, int]
"""The two halves of a key, and the append time."""
_words_of: Final = Struct("<QQ16xq21x")
"""Of an entry, as row_codec.ENTRY packs it."""
_halves: Final = Struct("<QQ")


class Generation:
    """A part of the ledger: the rows up to `last_row` from behind those of the one before."""

    __slots__ = ("bits", "index", "last_row", "mask", "newest_ms")

    def __init__(
        self, index: int, bits: bytearray, *, last_row: int = 0, newest_ms: int = 0
    ) -> None:
        self.index = index
        self.bits = bits
        self.mask = 8 * len(bits) - 1
        self.last_row = last_row
        self.newest_ms = newest_ms

    @classmethod
    def for_rows(cls, index: int, rows: int) -> "Generation":
        """An empty one with room for as many `rows`, a power of two."""
        return cls(index, bytearray(rows * BITS_PER_ROW // 8))

    @property
    def room(self) -> int:
        return 8 * len(self.bits) // BITS_PER_ROW

    def note(self, words: Sequence[Words]) -> None:
        """Set the bits of these keys."""
        bits, mask, newest_ms = self.bits, self.mask, self.newest_ms
        for low, high, at_ms in words:
            first, second = low & mask, (high >> TAG_BITS) & mask
            bits[first >> 3] |= 1 << (first & 7)
            bits[second >> 3] |= 1 << (second & 7)
            if at_ms > newest_ms:
                newest_ms = at_ms
        self.newest_ms = newest_ms


class Ledger:
    """What is known of a table's ledger without asking it: its generations and the next row.

    It runs ahead of the table while a batch is written: after a write that failed, load it again.
    """

    def __init__(self, generations: list[Generation], next_row: int, forgotten_to: int = 0) -> None:
        """`generations`: the oldest first; the last one is not full."""
        self._generations = generations
        self._next_row = next_row
        self._forgotten_to = forgotten_to
        """No row up to this one is there."""
        self._newest_from = next_row
        """The first row of the newest generation."""
        self._outlived: list[Generation] = []
        """Those that are being removed."""

    @classmethod
    def empty(cls) -> "Ledger":
        return cls([Generation.for_rows(1, GENERATION_MIN_ROWS)], 1)

    @classmethod
    def load(cls, db: sqlite3.Connection, _: None = None) -> "Ledger":
        """Read the filters of full generations, and note the keys of the newest one. Raises
        TableCorrupt."""
        generations = []
        for index, last_row, newest_ms, crc, bits in db.execute(LOAD_GENERATIONS):
            if crc32(bits) != crc:
                raise TableCorrupt("a filter of the ledger is not what was written")
            generations.append(
                Generation(index, bytearray(bits), last_row=last_row, newest_ms=newest_ms)
            )
        last_row = generations[-1].last_row if generations else 0
        sealed = generations[-1].index if generations else 0
        rows = db.execute(LOAD_CURRENT, (last_row,)).fetchall()
        # Once the full ones are forgotten, only the rows say which generation is the newest.
        index = rows[0][1] >> TAG_BITS if rows else sealed + 1
        if index <= sealed or any(tag >> TAG_BITS != index for _, tag, _ in rows):
            raise TableCorrupt("a row of the ledger is of another generation")
        next_row = rows[-1][0] + 1 if rows else last_row + 1
        ((oldest,),) = db.execute(LOAD_OLDEST).fetchall()
        ledger = cls(generations, next_row, next_row - 1 if oldest is None else oldest - 1)
        ledger._begin_generation(index)
        entries = b"".join(entry for *_, entry in rows)
        if len(entries) != _words_of.size * len(rows):
            raise TableCorrupt("a row of the ledger is not what was written")
        ledger._generations[-1].note(list(_words_of.iter_unpack(entries)))
        ledger._newest_from -= len(rows)
        return ledger

    def tags(self, keys: Sequence[bytes]) -> list[int]:
        """The index keys under which entries of `keys` may be; some are not."""
        halves = list(_halves.iter_unpack(b"".join(keys)))
        lows = [low for low, _ in halves]
        found: list[int] = []
        mask = -1
        places: list[int] = []
        masks: list[int] = []
        for generation in self._generations:
            if generation.mask != mask:
                mask = generation.mask
                places = [(low & mask) >> 3 for low in lows]
                masks = [1 << (low & 7) for low in lows]
            bits = generation.bits
            for _, high in compress(halves, map(and_, map(bits.__getitem__, places), masks)):
                second = (high >> TAG_BITS) & mask
                if bits[second >> 3] & 1 << (second & 7):
                    found.append(generation.index << TAG_BITS | high & TAG_MASK)
        return found

    def append(self, values: list[Any]) -> None:
        """Number and tag the rows of `values`, flat, in which both are missing; note their keys."""
        words = list(_words_of.iter_unpack(b"".join(values[2::ROW_WIDTH])))
        generation = self._generations[-1]
        generation.note(words)
        head = generation.index << TAG_BITS
        values[0::ROW_WIDTH] = range(self._next_row, self._next_row + len(words))
        values[1::ROW_WIDTH] = [head | high & TAG_MASK for _, high, _ in words]
        self._next_row += len(words)
        generation.last_row = self._next_row - 1

    def sealing(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Statements that keep the newest generation's filter once it is full; a new one begins."""
        newest = self._generations[-1]
        if self._next_row - self._newest_from < newest.room:
            return
        bits = bytes(newest.bits)
        yield SEAL, (newest.index, newest.last_row, newest.newest_ms, crc32(bits), bits)
        self._begin_generation(newest.index + 1)

    def forgetting(self, before_ms: int, rows: int) -> Iterator[tuple[str, Sequence[Any]]]:
        """Statements that remove up to `rows` of the oldest rows of full generations of which
        nothing is newer than `before_ms`."""
        while len(self._generations) > 1 and self._generations[0].newest_ms < before_ms:
            self._outlived.append(self._generations.pop(0))
        if not self._outlived:
            return
        oldest = self._outlived[0]
        self._forgotten_to = min(self._forgotten_to + rows, oldest.last_row)
        yield FORGET_ROWS, (self._forgotten_to,)
        if self._forgotten_to == oldest.last_row:
            yield FORGET_GENERATION, (oldest.index,)
            self._outlived.pop(0)

    def _begin_generation(self, index: int) -> None:
        held = self._next_row - 1 - self._forgotten_to
        rows = max(GENERATION_MIN_ROWS, 1 << (held // GENERATIONS).bit_length())
        self._generations.append(Generation.for_rows(index, rows))
        self._newest_from = self._next_row
