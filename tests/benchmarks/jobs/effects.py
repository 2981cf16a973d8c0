"""What jobs have done, as their effects show it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.benchmarks.running import percentile


class Effects(NamedTuple):
    """When each job began first and ended first, by its number; and how often each ended."""

    began_s: Mapping[int, float]
    ended_s: Mapping[int, float]
    ends: Counter[int]

    @classmethod
    def of(cls, lines: Iterable[str]) -> "Effects":
        began_s: dict[int, float] = {}
        ended_s: dict[int, float] = {}
        ends: Counter[int] = Counter()
        for line in lines:
            what, number, at_s = line.split()
            (began_s if what == "begins" else ended_s).setdefault(int(number), float(at_s))
            ends[int(number)] += what == "ends"
        return cls(began_s, ended_s, ends)


def throughput(effects: Effects, numbers: Sequence[int]) -> dict[str, float]:
    """Jobs a second, from where the first one begins to where the last one has ended."""
    done = [number for number in numbers if number in effects.ended_s]
    first_s = min(effects.began_s[number] for number in done)
    last_s = max(effects.ended_s[number] for number in done)
    return {"jobs": len(done), "jobs_per_s": len(done) / (last_s - first_s)}


def latency(
    effects: Effects, numbers: Sequence[int], due_s: float, rate_per_s: int, skipped: int
) -> dict[str, float]:
    """Milliseconds from when a job was due to be sent to its first line, without the first
    `skipped`; the n-th was due n / rate after `due_s`."""
    ms = [
        (effects.began_s[number] - due_s - n / rate_per_s) * 1000
        for n, number in enumerate(numbers)
        if n >= skipped and number in effects.began_s
    ]
    return {
        "latency_jobs": len(ms),
        "p50": percentile(ms, 50),
        "p99": percentile(ms, 99),
        "max": max(ms, default=float("nan")),
    }


def after_kills(effects: Effects, numbers: Sequence[int]) -> dict[str, float]:
    """How many of the jobs were never done, and how many were done more than once."""
    return {
        "kill_jobs": len(numbers),
        "lost": sum(effects.ends[number] == 0 for number in numbers),
        "twice": sum(effects.ends[number] > 1 for number in numbers),
    }
