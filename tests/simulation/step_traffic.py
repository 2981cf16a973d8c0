"""Commands of flows that have their work done in managed steps."""

from random import Random
from typing import Any, Final

from processor.contract.topics import Topics
from processor.contract.values import instant
from tests.simulation.traffic import OWNERS, Message, Traffic

RUNS: Final = ("a", "b", "c", "d", "é")
STEP_KINDS: Final = (
    *("schedule_step",) * 14,
    *("retry_step",) * 2,
    *("cancel_step", "wake_step", "set_waiting", "set_waiting"),
    *("start_step", "extend_step", "complete_step", "fail_step", "release_step"),
)
ENDS: Final = frozenset({"finish", "fail", "cancel", "request_cancel"})
LIVE: Final = ("created", "running", "waiting")
SHARE: Final = 0.65
"""Of the commands of a live flow, those about its steps."""


class StepTraffic(Traffic):
    """As `Traffic`; the owners schedule steps, wait for them, cancel and try them again, and
    strangers interfere."""

    def __init__(self, rng: Random, topics: Topics, partitions: int) -> None:
        super().__init__(rng, topics, partitions)
        self._trouble /= 2

    def _kind(self, flow: str) -> str:
        rng = self._rng
        guess = self._guess.get(flow)
        if guess in LIVE and rng.random() < SHARE:
            kind = rng.choice(STEP_KINDS)
            return "schedule_step" if kind == "set_waiting" and guess != "running" else kind
        kind = super()._kind(flow)
        # A flow that ends takes its steps with it; most are to be done before.
        return super()._kind(flow) if kind in ENDS and rng.random() < 0.7 else kind

    def _fields(self, kind: str, now_ms: int) -> dict[str, Any]:
        rng = self._rng
        match kind:
            case "schedule_step":
                return self._step(now_ms)
            case "retry_step":
                return {"run_id": rng.choice(RUNS), "attempts": rng.choice((1, 2, 100))}
            case "cancel_step" | "wake_step" | "start_step":
                return {"run_id": rng.choice(RUNS)}
            case "extend_step" | "complete_step" | "release_step":
                return {"run_id": rng.choice(RUNS), "attempt": rng.randrange(4)}
            case "fail_step":
                return {"run_id": rng.choice(RUNS), "attempt": rng.randrange(4), "reason": "why"}
            case "record_step_observation":
                fields = super()._fields(kind, now_ms)
                return {**fields, "run_id": rng.choice(("r", *RUNS))}
        return super()._fields(kind, now_ms)

    def _step(self, now_ms: int) -> dict[str, Any]:
        rng = self._rng
        step: dict[str, Any] = {
            "run_id": rng.choice(RUNS),
            "task": rng.choice(("t", "tâche")),
            "input_json": rng.choice((None, {"é": 1.5}, [1])),
            "max_attempts": rng.choice((1, 2, 3)),
            "lease_ms": rng.choice((1_000, 1_000, 3_000, 20_000)),
            "backoff_ms": rng.choice((0, 100, 1_000, 5_000)),
        }
        if rng.random() < 0.2:
            step["not_before"] = instant(now_ms + rng.choice((-1, 300, 5_000, 40_000)))
        if rng.random() < 0.2:
            step["timeout_at"] = instant(now_ms + rng.choice((0, 500, 5_000, 60_000)))
        return step

    def _wait(self, now_ms: int) -> dict[str, Any]:
        rng = self._rng
        if rng.random() < 0.3:
            return super()._wait(now_ms)
        wait: dict[str, Any] = {"kind": "steps"}
        if rng.random() < 0.6:
            wait["run_ids"] = rng.sample(RUNS, rng.choice((1, 1, 2)))
            wait["mode"] = rng.choice(("all", "any", "all_or_failure"))
        elif rng.random() < 0.3:
            wait["mode"] = "all_or_failure"
        if rng.random() < 0.3:
            wait["timeout_at"] = instant(now_ms + rng.choice((500, 5_000, 60_000)))
        return wait

    def _command(self, now_ms: int) -> Message:
        message = super()._command(now_ms)
        if message.name == "commands" and self._rng.random() < 0.02:
            # Of a stranger.
            value = (message.value or b"").replace(OWNERS[0].encode(), OWNERS[1].encode())
            return message._replace(value=value)
        return message
