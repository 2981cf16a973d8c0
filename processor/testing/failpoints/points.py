"""The named failpoints of a worker, and the actions at them."""

import asyncio
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

import structlog

from processor.errors import TaskflowError
from processor.settings import FAULT, parse_duration

log = structlog.get_logger()

POINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "K0": "records were polled",
        "K1": "a batch is decided",
        "K2": "its transaction has begun",
        "K3": "a part of it is acknowledged, and not all",
        "K4": "all of it is acknowledged",
        "K5": "the offsets were committed to the group",
        "K6": "the commit (EndTxn) is on its way",
        "K7": "Kafka has committed",
        "K8": "the table's transaction is open, and has the new position",
        "K9": "the table has committed",
        "K10": "a takeover has a part of the past in its table",
        "K11": "a table is being made",
        "K12": "work items are to be written, and none is",
        "K13": "work items are written, and the partition does not know it yet",
    }
)


class FailpointAction(StrEnum):
    """What happens at a point."""

    KILL = "kill"
    """SIGKILL."""
    STOP = "stop"
    """SIGSTOP, until SIGCONT."""
    RAISE = "raise"
    """An unexpected error."""
    DELAY = "delay"
    FULL = "full"
    """The table may take no further page in this transaction, as on a full disk; K8 only."""


class Failpoint(NamedTuple):
    """`nth` counts how often the process has reached the point, from 1; None: every time."""

    point: str
    action: FailpointAction
    nth: int | None = 1
    delay_s: float = 0.0


class Injected(TaskflowError):
    """A crash point raised it, as TASKFLOW_FAULTS asked."""

    retriable = True


def parse_faults(text: str) -> tuple[Failpoint, ...]:
    """`K6:kill@3,K8:delay=2s@*`: point, action and at which time. Raises ValueError."""
    faults = []
    for part in text.split(","):
        match = re.fullmatch(FAULT, part)
        if match is None:
            raise ValueError(f"{part!r} is no crash point such as K6:kill@3")
        point, action, delay, nth = match.group("point", "action", "delay", "nth")
        delay_s = parse_duration(delay) / 1000 if delay else 0.0
        count = None if nth == "*" else int(nth or 1)
        faults.append(Failpoint(point, FailpointAction(action.partition("=")[0]), count, delay_s))
    return tuple(faults)


class Failpoints:
    """Counts how often each point is reached, and breaks what is due there."""

    def __init__(self, faults: Sequence[Failpoint]) -> None:
        self._faults = faults
        self._reached: Counter[str] = Counter()
        self._lock = threading.Lock()

    def names(self, point: str) -> bool:
        """Whether anything is ever to happen there."""
        return any(fault.point == point for fault in self._faults)

    async def reach(self, point: str) -> None:
        """Raises Injected, if that is what is due."""
        fault = self._due(point)
        if fault is None:
            return
        if fault.action is FailpointAction.DELAY:
            await asyncio.sleep(fault.delay_s)
        else:
            _break(fault)

    def reach_in_thread(self, point: str) -> FailpointAction | None:
        """As `reach`, where blocking is harmless; return the action that was due."""
        fault = self._due(point)
        if fault is None:
            return None
        if fault.action is FailpointAction.DELAY:
            time.sleep(fault.delay_s)
        else:
            _break(fault)
        return fault.action

    def _due(self, point: str) -> Failpoint | None:
        with self._lock:
            self._reached[point] += 1
            count = self._reached[point]
        for fault in self._faults:
            if fault.point == point and fault.nth in (None, count):
                log.warning("a crash point is reached", point=point, times=count, does=fault.action)
                return fault
        return None


def _break(fault: Failpoint) -> None:
    match fault.action:
        case FailpointAction.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case FailpointAction.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case FailpointAction.RAISE:
            raise Injected(
                f"{fault.point} was reached, and TASKFLOW_FAULTS asks for an error there"
            )
