"""What a job does, the same for all: it writes a line once it begins and one once it ends."""

import os
import time
from collections.abc import Iterator

_FILE = os.open(os.environ["JOBS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def begins(number: int) -> None:
    os.write(_FILE, b"begins %d %f\n" % (number, time.time()))


def ends(number: int) -> None:
    os.write(_FILE, b"ends %d %f\n" % (number, time.time()))


class Due:
    """The numbers of jobs when they are due: at once if there is no rate."""

    def __init__(self, count: int, rate_per_s: int) -> None:
        self._count, self._rate_per_s = count, rate_per_s
        self.began_s = time.time()

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            if self._rate_per_s:
                left_s = self.began_s + number / self._rate_per_s - time.time()
                if left_s > 0:
                    time.sleep(left_s)
            yield number
