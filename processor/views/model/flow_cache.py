"""Hold the flows changed last in memory, up to a limit in bytes."""

from collections import OrderedDict
from typing import Final

from processor.views.model.projection import Viewed

CACHE_BYTES: Final = 64 * 1024 * 1024
_FLOW_BYTES: Final = 2_500


class Flows:
    """The flows changed last, by their ids; what falls out is read from the database again."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._held: OrderedDict[str, tuple[Viewed, int]] = OrderedDict()

    def get(self, flow_id: str) -> Viewed | None:
        held = self._held.get(flow_id)
        return None if held is None else held[0]

    def put(self, viewed: Viewed) -> None:
        self.drop(viewed.flow.id)
        weight = _FLOW_BYTES + 3 * viewed.state_bytes
        self._held[viewed.flow.id] = (viewed, weight)
        self._bytes += weight
        while self._bytes > self._limit_bytes:
            _, (_, lost) = self._held.popitem(last=False)
            self._bytes -= lost

    def drop(self, flow_id: str) -> None:
        if (held := self._held.pop(flow_id, None)) is not None:
            self._bytes -= held[1]

    def clear(self) -> None:
        self._held.clear()
        self._bytes = 0
