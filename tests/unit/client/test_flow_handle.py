"""A handle's methods are the commands of the flow's owner; a refusal is raised."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from processor.client import CommandRefused, FlowHandle, flow_id_for
from processor.client.preparation import prepare
from processor.contract import Outcome, parse_timestamp
from processor.settings import Settings

FLOW = "0d9f5f2e-7d2b-4c8b-9a51-1c8a8a3f0d11"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Client:
    """Reads each command as the processor would, and accepts it or answers `code`."""

    def __init__(self, code: str | None = None) -> None:
        self.settings = Settings()
        self.session = "agent:1"
        self.sent: list[dict[str, Any]] = []
        self._code = code

    def now_ms(self) -> int:
        return round(NOON.timestamp() * 1000)

    async def send(self, command: Any, **_: Any) -> Outcome:
        assert isinstance(command, Mapping)
        self.sent.append(dict(command))
        prepared = prepare(command, now_ms=0, expires_after_ms=None).command
        return Outcome.model_validate_json(
            f"""{{"command_id": "{prepared.command_id}", "flow_id": "{FLOW}",
            "kind": "{command["kind"]}", "verdict": "{"rejected" if self._code else "accepted"}",
            "code": {f'"{self._code}"' if self._code else "null"}, "message": "No.",
            "revision": 4, "status": "running", "event_ids": [], "allowed": ["cancel"],
            "details": {{}}, "dry_run": false, "command_digest": "{"0" * 32}",
            "source": {{"topic": "t", "partition": 0, "offset": 1}},
            "at": "2026-01-01T12:00:00.000Z"}}"""
        )


CALLS = [
    (lambda f: f.start(), {"kind": "start_running"}),
    (
        lambda f: f.update({"x": 1}, next_step="two", expected=3),
        {
            "kind": "update_state",
            "patch": {"x": 1},
            "next_step": "two",
            "expected_revision": 3,
        },
    ),
    (lambda f: f.update(None), {"kind": "update_state", "patch": None}),
    (lambda f: f.finish(), {"kind": "finish"}),
    (lambda f: f.finish({"n": 0}), {"kind": "finish", "final_state": {"n": 0}}),
    (lambda f: f.fail("no mail"), {"kind": "fail", "reason": "no mail"}),
    (lambda f: f.request_cancel(), {"kind": "request_cancel"}),
    (lambda f: f.cancel(), {"kind": "cancel"}),
    (
        lambda f: f.wait_until(NOON),
        {"kind": "set_waiting", "wait": {"kind": "timer", "at": "2026-01-01T12:00:00.000Z"}},
    ),
    (
        lambda f: f.wait_for("mail", "order-17", prompt={"ask": 1}, timeout=NOON),
        {
            "kind": "set_waiting",
            "wait": {
                "kind": "external_event",
                "topic": "mail",
                "correlation_id": "order-17",
                "prompt": {"ask": 1},
                "timeout_at": "2026-01-01T12:00:00.000Z",
            },
        },
    ),
    (lambda f: f.wait_for_resume(), {"kind": "set_waiting", "wait": {"kind": "manual"}}),
    (
        lambda f: f.join(["a"], mode="any"),
        {"kind": "set_waiting", "wait": {"kind": "steps", "run_ids": ["a"], "mode": "any"}},
    ),
    (lambda f: f.join(), {"kind": "set_waiting", "wait": {"kind": "steps"}}),
    (lambda f: f.resume({"y": 2}), {"kind": "resume", "state_patch": {"y": 2}}),
    (
        lambda f: f.schedule("a", "classify", {"mail": 1}, lease=timedelta(minutes=1)),
        {
            "kind": "schedule_step",
            "run_id": "a",
            "task": "classify",
            "input_json": {"mail": 1},
            "lease_ms": 60_000,
        },
    ),
    (lambda f: f.cancel_step("a"), {"kind": "cancel_step", "run_id": "a"}),
    (lambda f: f.retry_step("a"), {"kind": "retry_step", "run_id": "a", "attempts": 1}),
]


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=lambda value: None)
async def test_a_method_sends_its_command(call: Any, expected: Any) -> None:
    client = Client()
    flow = FlowHandle(client, FLOW)

    await call(flow)

    assert client.sent == [{"flow_id": FLOW, "issued_by": "agent:1", **expected}]
    assert (flow.revision, flow.status) == (4, "running")


async def test_a_span_is_counted_from_the_clients_now() -> None:
    client = Client()
    await FlowHandle(client, FLOW).wait_until(timedelta(hours=1))
    at_ms = parse_timestamp(client.sent[0]["wait"]["at"])
    assert at_ms == client.now_ms() + 3_600_000


async def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        await FlowHandle(Client(), FLOW).wait_until(datetime(2026, 1, 1))


async def test_a_refusal_is_raised_with_what_is_allowed() -> None:
    flow = FlowHandle(Client("illegal_transition"), FLOW)
    with pytest.raises(CommandRefused, match="finish was refused") as caught:
        await flow.finish()
    assert (caught.value.code, caught.value.allowed) == ("illegal_transition", ["cancel"])
    assert flow.revision is None


def test_a_business_key_has_one_flow_id() -> None:
    assert flow_id_for("order-17") == flow_id_for("order-17") != flow_id_for("order-18")
