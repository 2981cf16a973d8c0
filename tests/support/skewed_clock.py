"""`taskflow` with a wall clock that is off: `python shifted.py SECONDS worker`.

What Python code asks for the time is patched before anything of ours is imported; monotonic clocks
go as they do.
"""

import datetime
import sys
import time

ahead_s = float(sys.argv.pop(1))
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + ahead_s
time.time_ns = lambda: real_ns() + int(ahead_s * 1e9)


class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Shifted":
        return cls.fromtimestamp(time.time(), tz)


datetime.datetime = Shifted  # type: ignore[misc]

from processor.cli.main import main  # noqa: E402

main()
