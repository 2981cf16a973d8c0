"""Scenarios of the demo: what each kind of producer does, and the outcomes it gets."""

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from processor.client import FlowClient
from processor.contract.outcomes import Outcome
from processor.contract.values import instant
from processor.errors import TaskflowError
from processor.runtime import now_ms

TIMEOUT_S = 30.0
WAIT_MS = 2_000
"""How far ahead a wait ends; by the broker's clock, which is this machine's."""


class NotAsExpected(TaskflowError):
    """A command was answered in another way than the contract says."""


@dataclass(slots=True)
class Scenario:
    """Sends a story's commands one after the other, and holds each answer against the contract."""

    client: FlowClient
    sent: Counter[str] = field(default_factory=Counter)
    """How many commands of each kind were answered."""

    async def send(
        self,
        kind: str,
        flow_id: str,
        by: str,
        /,
        *,
        expect: str = "accepted",
        control: bool = False,
        **fields: Any,
    ) -> Outcome:
        """`expect` is a verdict, or a code where it is rejected. Raises NotAsExpected."""
        command = {"kind": kind, "flow_id": flow_id, "issued_by": by, **fields}
        outcome = await self.client.send(command, control=control, timeout_s=TIMEOUT_S)
        self.sent[kind] += 1
        if expect not in (outcome.verdict, outcome.code):
            raise NotAsExpected(
                f"{kind} of flow {flow_id} was {outcome.verdict} ({outcome.code}: "
                f"{outcome.message}), but {expect} was expected."
            )
        return outcome


Story = Callable[[Scenario, int], Coroutine[Any, Any, None]]


async def first_story(scenario: Scenario) -> None:
    """One flow alone, so that what follows measures the work and not the worker's start."""
    await scenario.send(
        *("create_mirrored", str(uuid4()), "session:first"),
        controller_id="demo",
        goal="See whether anybody answers",
        requester_origin="demo",
    )


async def inbox_triage(scenario: Scenario, nth: int) -> None:
    """A message comes in, is classified by two helpers, and is dealt with."""
    flow, me = str(uuid4()), "session:inbox"
    await scenario.send(
        *("create_managed", flow, me),
        controller_id="inbox",
        goal=f"Deal with message {nth}",
        requester_origin="mail",
        state_json={"message": nth},
    )
    await scenario.send("start_running", flow, me)
    for helper in ("classify", "summarize"):
        await scenario.send(
            *("record_step_observation", flow, f"session:{helper}"),
            run_id=f"{helper}-{nth}",
            task=helper,
            status="succeeded",
            result_json={"confidence": 0.9},
        )
    await scenario.send("update_state", flow, me, patch={"label": "invoice"}, next_step="file")
    await scenario.send("finish", flow, me, final_state={"folder": "2026/invoices"})


async def report_that_waits(scenario: Scenario, nth: int) -> None:
    """A report waits until its owner has looked at the draft."""
    flow, me = str(uuid4()), "session:reports"
    await scenario.send(
        *("create_managed", flow, me),
        controller_id="reports",
        goal=f"Write the report of week {nth}",
        requester_origin="schedule",
    )
    await scenario.send("start_running", flow, me)
    await scenario.send(
        "update_state", flow, me, patch={"draft": "s3://drafts/1"}, next_step="review"
    )
    await scenario.send("set_waiting", flow, me, wait={"kind": "manual"})
    await scenario.send("resume", flow, me, state_patch={"approved": True})
    await scenario.send("finish", flow, me)


async def payment_from_outside(scenario: Scenario, nth: int) -> None:
    """An order waits for an event of another service, which only knows the correlation id."""
    flow, me, paid = str(uuid4()), "session:orders", f"payment-{nth}"
    await scenario.send(
        *("create_managed", flow, me),
        controller_id="orders",
        goal=f"Ship order {nth} once it is paid",
        requester_origin="shop",
    )
    await scenario.send("start_running", flow, me)
    wait = {"kind": "external_event", "topic": "payments", "correlation_id": paid}
    await scenario.send("set_waiting", flow, me, wait=wait)
    event: dict[str, Any] = {
        "topic": "payments",
        "correlation_id": paid,
        "payload": {"cents": 4200},
    }
    await scenario.send("resume_external", flow, "service:payments", **event)
    await scenario.send("finish", flow, me, final_state={"shipped": True})


async def build_elsewhere(scenario: Scenario, nth: int) -> None:
    """A build already runs elsewhere and is only mirrored; every third one fails."""
    flow, me = str(uuid4()), "session:builds"
    await scenario.send(
        *("create_mirrored", flow, me),
        controller_id="builds",
        goal=f"Follow build {nth}",
        requester_origin="ci",
    )
    step: dict[str, Any] = {"run_id": f"build-{nth}", "task": "compile"}
    await scenario.send("record_step_observation", flow, "runner:7", **step, status="running")
    if nth % 3 == 0:
        await scenario.send("record_step_observation", flow, "runner:7", **step, status="failed")
        await scenario.send("fail", flow, me, reason="the compiler gave up")
    else:
        await scenario.send("record_step_observation", flow, "runner:7", **step, status="succeeded")
        await scenario.send("finish", flow, me)


async def change_of_mind(scenario: Scenario, nth: int) -> None:
    """Cancellation is asked for; from then on nothing else is taken."""
    flow, me = str(uuid4()), "session:travel"
    await scenario.send(
        *("create_managed", flow, me),
        controller_id="travel",
        goal=f"Book trip {nth}",
        requester_origin="chat",
    )
    await scenario.send("start_running", flow, me)
    await scenario.send("request_cancel", flow, me)
    await scenario.send("update_state", flow, me, expect="cancel_pending", patch={"seat": "12A"})
    await scenario.send("cancel", flow, me)


async def mistakes(scenario: Scenario, nth: int) -> None:
    """What a producer can do wrong, and what outcome it gets; none of it changes the flow."""
    flow, me = str(uuid4()), "session:careless"
    create: dict[str, Any] = {
        "controller_id": "lessons",
        "goal": f"Learn from mistake {nth}",
        "requester_origin": "demo",
        "command_id": str(uuid4()),
        "expires_at": "2999-01-01T00:00:00.000Z",
    }
    await scenario.send("create_managed", flow, me, **create)
    await scenario.send("create_managed", flow, me, expect="duplicate", **create)
    await scenario.send("finish", flow, me, expect="illegal_transition")
    await scenario.send("start_running", flow, me, dry_run=True)
    await scenario.send("start_running", flow, me, expected_revision=0)
    await scenario.send(
        *("update_state", flow, me), expect="revision_mismatch", expected_revision=0, patch={}
    )
    await scenario.send("cancel", flow, "session:stranger", expect="not_owner")
    await scenario.send("prune", flow, me, expect="forbidden")
    await scenario.send("cancel", flow, "operator:demo", control=True)
    await scenario.send("resume", flow, me, expect="already_terminal")


Happened = Callable[[str, int], Awaitable[dict[str, Any]]]
"""The FlowEvent that gave a flow a revision, once it is there."""


async def waits_that_end(scenario: Scenario, flow: str, happened: Happened) -> None:
    """One flow waits four times: until a time; for an event that does not come in time; for one
    that comes; and until it is cancelled. What ends three of these waits is the
    processor."""
    me, topic = "session:patient", "deliveries"

    async def wait(**wait: Any) -> int:
        outcome = await scenario.send("set_waiting", flow, me, wait=wait)
        return (outcome.revision or 0) + 1

    async def ends(revision: int, kind: str, by: str | None) -> None:
        event = await happened(flow, revision)
        found = event["kind"], event["payload_json"].get("by")
        if found != (kind, by):
            raise NotAsExpected(
                f"The wait of flow {flow} ended with {found}, but {(kind, by)} was expected."
            )

    await scenario.send(
        *("create_managed", flow, me),
        controller_id="deliveries",
        goal="Wait for the parcel, but not for ever",
        requester_origin="demo",
    )
    await scenario.send("start_running", flow, me)
    await ends(await wait(kind="timer", at=_soon()), "resumed", "timer")
    event = {"kind": "external_event", "topic": topic}
    late = await wait(**event, correlation_id="parcel-1", timeout_at=_soon())
    await ends(late, "resumed", "timeout")
    comes = await wait(**event, correlation_id="parcel-2")
    parcel: dict[str, Any] = {
        "topic": topic,
        "correlation_id": "parcel-2",
        "payload": {"door": "front"},
    }
    await scenario.send("resume_external", flow, "service:parcels", **parcel)
    await ends(comes, "resumed", "external_event")
    asked = await wait(kind="manual")
    await scenario.send("request_cancel", flow, me)
    await ends(asked + 1, "cancelled", None)


def _soon() -> str:
    return instant(now_ms() + WAIT_MS)


CAST: tuple[tuple[Story, int], ...] = (
    (inbox_triage, 16),
    (report_that_waits, 9),
    (payment_from_outside, 8),
    (build_elsewhere, 9),
    (change_of_mind, 4),
    (mistakes, 3),
)


def all_stories(scenario: Scenario) -> Iterator[Coroutine[Any, Any, None]]:
    """One coroutine for each flow, different stories next to each other."""
    for nth in range(1, max(count for _, count in CAST) + 1):
        for story, count in CAST:
            if nth <= count:
                yield story(scenario, nth)
