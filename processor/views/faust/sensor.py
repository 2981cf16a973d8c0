"""Expose Faust's sensors as metrics.

Faust's own Monitor keeps times of every event, which costs more than projecting one; this one
gets what is rare.
"""

import time
from typing import Any

from faust.sensors import Monitor


class ViewSensor(Monitor):
    """Faust's Monitor without what it does for each event."""

    def on_message_in(self, tp: Any, offset: int, message: Any) -> None:
        pass

    def on_stream_event_in(self, tp: Any, offset: int, stream: Any, event: Any) -> None:
        return None

    def on_stream_event_out(
        self, tp: Any, offset: int, stream: Any, event: Any, state: Any = None
    ) -> None:
        pass

    def on_topic_buffer_full(self, tp: Any) -> None:
        pass

    def on_message_out(self, tp: Any, offset: int, message: Any) -> None:
        pass

    def on_table_get(self, table: Any, key: Any) -> None:
        pass

    def on_table_set(self, table: Any, key: Any, value: Any) -> None:
        pass

    def on_rebalance_start(self, app: Any) -> dict[str, Any]:
        app.metrics_.rebalances.inc()
        return {"time_start": time.monotonic()}

    def on_rebalance_return(self, app: Any, state: dict[str, Any]) -> None:
        state["time_return"] = time.monotonic()

    def on_rebalance_end(self, app: Any, state: dict[str, Any]) -> None:
        app.metrics_.rebalance_seconds.observe(time.monotonic() - state["time_start"])
