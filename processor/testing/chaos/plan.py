"""The plan and the report of a chaos run."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """The plan of a chaos run.

    It ends after `seconds` or `kills`; with `kills`, the only faults are kill -9. `bootstrap` None:
    embedded brokers, and with several of them three replicas for each partition, of which two must
    be in sync.
    """

    seed: int
    seconds: float | None
    kills: int | None = None
    workers: int = 2
    executors: int = 2
    partitions: int = 4
    per_s: int = 200
    brokers: int = 1
    bootstrap: str | None = None


@dataclass(slots=True)
class ChaosResult:
    """The result of a chaos run. `violations` are sentences with the place of each; without any,
    the run passed."""

    plan: ChaosPlan
    prefix: str
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    requests: dict[str, int] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    """The number of events of steps, by kind."""
    heal_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    verified: list[dict[str, Any]] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    """What `verify` found of flipped bits that no worker had read. Then the tables were removed,
    restored and verified again."""
    kept: str | None = None
    """The folder of logs and tables, kept if there are violations."""

    @property
    def ok(self) -> bool:
        return not self.violations

    def as_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "ok": self.ok,
            "seed": plan.seed,
            "prefix": self.prefix,
            "workers": plan.workers,
            "executors": plan.executors,
            "partitions": plan.partitions,
            "per_s": plan.per_s,
            "broker": "embedded" if plan.bootstrap is None else "given",
            "brokers": plan.brokers if plan.bootstrap is None else None,
            "seconds": round(self.seconds, 1),
            "faults": dict(sorted(self.faults.items())),
            "kills": dict(sorted(self.kills.items())),
            "requests": dict(sorted(self.requests.items())),
            "commands": {
                "sent": dict(sorted(self.sent.items())),
                "acknowledged": self.acknowledged,
                "verdicts": dict(sorted(self.verdicts.items())),
            },
            "steps": dict(sorted(self.steps.items())),
            "heal_s": _spread(self.heal_s),
            "violations": self.violations,
            "verified": self.verified,
            "repaired": self.repaired,
            "kept": self.kept,
        }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }
