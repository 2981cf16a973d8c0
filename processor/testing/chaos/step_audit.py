"""Read the audit of a chaos run's steps: how often what happened, whether each has ended, once, and
what stopped executors recorded."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from processor.adapters.kafka.reader.topic_reader import read
from processor.contract.topics import Topics
from processor.contract.values import parse_timestamp
from processor.settings import Settings

ENDS: Final = frozenset({"step_succeeded", "step_failed", "step_cancelled"})
RESULTS: Final = frozenset({"step_succeeded", "step_failed", "step_retried", "step_released"})
TIMER: Final = "taskflow:timer"


class Stop(NamedTuple):
    """An executor was stopped at `from_ms` and continued at `until_ms`; `holder` is its
    `issued_by`."""

    holder: str
    from_ms: int
    until_ms: int


@dataclass(slots=True)
class _Attempt:
    holder: str
    lease_end_ms: int


@dataclass(slots=True)
class StepAudit:
    """Takes in events in their order. `violations` are sentences."""

    stops: list[Stop]
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    _live: set[tuple[str, str]] = field(default_factory=set)
    _attempts: dict[tuple[str, str], _Attempt] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        kind, payload = event["kind"], event["payload_json"]
        if not kind.startswith("step_") or kind == "step_observed":
            return
        about = payload.get("step", payload)
        at = (event["flow_id"], about["run_id"])
        self.counts[kind] += 1
        if payload.get("reason") == "lease expired":
            self.counts["leases expired"] += 1
        self._look_for_stops(event, at)
        if kind in ("step_started", "step_extended"):
            due_ms = parse_timestamp(payload["changes"]["execution"]["due_at"])
            holder = event["actor"] if kind == "step_started" else self._attempts[at].holder
            self._attempts[at] = _Attempt(holder, due_ms)
        elif kind in ("step_scheduled", "step_retried"):
            self._live.add(at)
        elif kind in ENDS:
            if at not in self._live:
                self.violations.append(f"Step {at[1]} of flow {at[0]} ended twice: {kind}.")
            self._live.discard(at)

    def _look_for_stops(self, event: dict[str, Any], at: tuple[str, str]) -> None:
        attempt = self._attempts.get(at)
        if event["kind"] not in RESULTS or attempt is None or event["actor"] != attempt.holder:
            return
        at_ms = parse_timestamp(event["at"])
        for stop in self.stops:
            lapsed = stop.from_ms <= attempt.lease_end_ms <= stop.until_ms <= at_ms
            if stop.holder == attempt.holder and lapsed:
                self.violations.append(
                    f"{stop.holder} was stopped past its lease, and recorded {event['kind']} of "
                    f"step {at[1]} of flow {at[0]} when it was continued."
                )

    def end(self) -> None:
        """All is taken in."""
        if self._live:
            flow_id, run_id = min(self._live)
            self.violations.append(
                f"{len(self._live)} steps have not ended, such as {run_id} of flow {flow_id}."
            )


async def read_steps(settings: Settings, stops: list[Stop]) -> StepAudit:
    """What became of all steps; each must have ended."""
    audit = StepAudit(stops)
    async for record in read(settings, Topics(settings.topic_prefix).audit):
        with suppress(ValueError, LookupError, TypeError):  # no event: verify tells of it
            audit.take(orjson.loads(record.value or b""))
    audit.end()
    return audit
