"""Views without Kafka for the page and the terminal: the HTTP API over what a real handler has
decided. Each answer is one of the API's own responses."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid5

from aiohttp import web
from pydantic import BaseModel

from processor.contract.events import EVENTS, EventKind
from processor.contract.flow import FlowStatus
from processor.contract.values import instant, parse_timestamp
from processor.domain.evolve import evolve
from processor.domain.facts import Fact
from processor.domain.transitions import OWNER, allowed
from processor.views.http import parameters, responses
from processor.views.http.static_files import page_routes
from processor.views.query.search import split_conditions
from tests.support.builders import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from tests.support.machine import patience
from tests.support.recorded_deployment import Recorded


class ShownViews:
    """Answers for `recorded`; `send` decides commands and tells who listens."""

    def __init__(self, recorded: Recorded, *, orphaned: int | None = None) -> None:
        self.recorded = recorded
        self.orphaned = orphaned
        """A partition without a worker."""
        self.actions = False
        """Whether the page shows what an operator may do."""
        self.brokers, self.prefix = "127.0.0.1:9092", "taskflow"
        self.behind = 0
        self.lag_ms = 0
        self.missing: list[int] = []
        """Partitions that no view worker shows."""
        self.backlog: dict[int, int] = {}
        """By partition: commands that its worker has not decided."""
        self.searched_all = True
        self.asked: list[str] = []
        self._streams: set[asyncio.Queue[dict[str, Any]]] = set()
        self._shown: set[int] = {event["id"] for event in self._events()}

    def send(self, *commands: dict[str, Any], at_ms: int | None = None) -> None:
        for command in commands:
            self.recorded.send(("commands", command), at_ms=at_ms)
        for event in sorted(self._events(), key=lambda one: one["id"]):
            if event["id"] not in self._shown:
                self._shown.add(event["id"])
                for queue in self._streams:
                    queue.put_nowait(event)

    async def until_followed_by(self, count: int) -> None:
        """Wait until so many streams are open."""
        async with asyncio.timeout(patience(30)):
            while len(self._streams) != count:
                # A connection that was closed shows once something is written to it.
                for queue in self._streams:
                    queue.put_nowait({"flow_id": ""})
                await asyncio.sleep(0.02)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/ready", self._ready),
            web.get("/v1/flows", self._flows),
            web.get("/v1/flows/{flow_id}", self._flow),
            web.get("/v1/flows/{flow_id}/history", self._history),
            web.get("/v1/events", self._newest),
            web.get("/v1/stream", self._stream),
            web.get("/v1/statistics", self._statistics),
            web.get("/v1/deadletters", self._dead_letters),
            web.get("/v1/partitions", self._partitions),
        ]

    # What there is

    def _events(self) -> list[dict[str, Any]]:
        numbers = range(self.recorded.partitions)
        return [json.loads(r.value or b"") for p in numbers for r in self.recorded.of("audit", p)]

    def _rows(self) -> list[tuple[int, Any]]:
        owners = self.recorded._owners.items()
        return [(p, row.flow) for p, owner in owners for row in owner.flows.values()]

    def _view(self) -> dict[str, Any]:
        ends = [
            {"partition": p, "event_id": (p << 40) + len(self.recorded.of("audit", p)), "behind": 0}
            for p in range(self.recorded.partitions)
            if p not in self.missing
        ]
        return {
            "complete": not self.missing,
            "missing": self.missing,
            "behind": None if self.missing else self.behind,
            "lag_ms": None if self.missing else self.lag_ms,
            "partitions": ends,
        }

    # What is asked

    async def _ready(self, _: web.Request) -> web.Response:
        return web.json_response({"ready": True, "brokers": self.brokers, "prefix": self.prefix})

    async def _flows(self, request: web.Request) -> web.Response:
        query = self._query(request, parameters.FlowsQuery)
        firsts = {e["flow_id"]: e["id"] for e in reversed(self._events())}
        found = [summary(p, flow, firsts[flow.id]) for p, flow in self._rows()]
        kept = [one for one in found if _fits(one, query)]
        if query.sort == "wait":
            kept = sorted(
                (one for one in kept if one["wait_ends_at"]), key=lambda one: one["wait_ends_at"]
            )
        else:
            kept.sort(key=lambda one: (one[f"{query.sort}_at"], one["id"]), reverse=True)
        return self._page(responses.FlowPage, kept, query, searched_all=self.searched_all)

    async def _flow(self, request: web.Request) -> web.Response:
        query = self._query(request, parameters.FlowQuery)
        flow_id = request.match_info["flow_id"]
        found = next(((p, flow) for p, flow in self._rows() if flow.id == flow_id), None)
        if found is None:
            return _no_such_flow()
        partition, flow = found
        at = flow.revision if query.revision is None else query.revision
        kept = self.recorded.owner(partition).steps.items()
        steps = [json.loads(row.doc) for key, row in kept if key[0] == flow_id]
        events = [event for event in self._events() if event["flow_id"] == flow_id]
        return _json(
            responses.FlowAnswer,
            flow=_at_revision(events, at),
            steps=steps,
            steps_total=len(steps),
            allowed=[str(kind) for kind in allowed(flow, OWNER)],
            partition=partition,
            events=len(events),
            last_event_id=events[-1]["id"],
            view=self._view(),
        )

    async def _history(self, request: web.Request) -> web.Response:
        query = self._query(request, parameters.HistoryQuery)
        flow_id = request.match_info["flow_id"]
        events = [event for event in self._events() if event["flow_id"] == flow_id]
        return self._page(
            responses.EventPage, events if query.order == "asc" else events[::-1], query
        )

    async def _newest(self, request: web.Request) -> web.Response:
        query = self._query(request, parameters.EventsQuery)
        events = sorted(self._events(), key=lambda event: (event["at"], event["id"]), reverse=True)
        return self._page(responses.EventPage, events, query)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        query = self._query(request, parameters.StreamQuery)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._streams.add(queue)
        try:
            await response.write(b"event: ready\ndata: {}\n\n")
            while True:
                event = await queue.get()
                if not event["flow_id"]:
                    await response.write(b": still here\n\n")
                    continue
                if query.flow not in (None, event["flow_id"]):
                    continue
                body = responses.StreamEvent(
                    event=EVENTS.validate_json(json.dumps(event)), owner=None
                )
                text = f"id: {event['id']}\nevent: event\ndata: {body.model_dump_json()}\n\n"
                await response.write(text.encode())
        finally:
            self._streams.discard(queue)

    async def _statistics(self, request: web.Request) -> web.Response:
        query = self._query(request, parameters.StatisticsQuery)
        events, rows = self._events(), self._rows()
        kinds = Counter(event["kind"] for event in events)
        minutes = Counter((event["at"][:16], event["kind"]) for event in events)
        ended = {kind: kinds[kind] for kind in ("finished", "failed", "cancelled")}
        return _json(
            responses.Statistics,
            flows={s: sum(flow.status == s for _, flow in rows) for s in FlowStatus},
            flows_total=len(rows),
            cancel_requested=sum(flow.cancel_requested for _, flow in rows),
            events_total=len(events),
            events_by_kind=dict(kinds),
            minutes=query.minutes,
            series=[
                {
                    "at": f"{minute}:00.000Z",
                    "created": minutes[minute, "created"],
                    **{kind: minutes[minute, kind] for kind in ended},
                    "events": sum(n for (at, _), n in minutes.items() if at == minute),
                }
                for minute in sorted({minute for minute, _ in minutes})
            ],
            rates={"created": 1.5, "finished": 1.25, "failed": 0.25, "cancelled": 0.0,
                   "events": 12.0},
            failure_ratio=ended["failed"] / sum(ended.values()) if sum(ended.values()) else None,
            durations=[{"status": "running", "count": 9, "mean_ms": 4000.0, "p50_ms": 3000.0,
                        "p90_ms": 9000.0, "p99_ms": 61000.0, "max_ms": 61000}],
            view=self._view(),
        )  # fmt: skip

    async def _dead_letters(self, request: web.Request) -> web.Response:
        query = self._query(request, parameters.DeadLettersQuery)
        items = []
        for p in range(self.recorded.partitions):
            for record in self.recorded.of("deadletters", p):
                body = {k: (v or b"").decode() for k, v in record.headers if k[:9] == "taskflow-"}
                event = {
                    "topic": body["taskflow-source-topic"],
                    "partition": int(body["taskflow-source-partition"]),
                    "offset": int(body["taskflow-source-offset"]),
                }
                items.append(
                    {
                        "partition": p,
                        "offset": record.offset,
                        "at": body["taskflow-source-timestamp"],
                        "code": body["taskflow-code"],
                        "message": body["taskflow-message"],
                        "source": event,
                        "source_at": body["taskflow-source-timestamp"],
                        "key": None if record.key is None else record.key.decode(),
                        "value": (record.value or b"").decode("utf-8", "replace")[:2048],
                        "size": len(record.value or b""),
                    }
                )
        return self._page(responses.DeadLetterPage, items[::-1], query)

    async def _partitions(self, request: web.Request) -> web.Response:
        items, undecided = [], 0
        shown = {one["partition"]: one for one in self._view()["partitions"]}
        for p in range(self.recorded.partitions):
            nobody = p == self.orphaned
            waiting = self.backlog.get(p, 1200 if nobody else 0)
            end = len(self.recorded.of("commands", p)) + waiting
            committed = len(self.recorded.of("commands", p))
            undecided += waiting
            items.append(
                {
                    "partition": p,
                    "worker": None if nobody else f"taskflow-worker-{p % 2} @ 10.0.0.{p % 2}",
                    "commands": {"end": end, "committed": committed, "behind": end - committed},
                    "control": {"end": 0, "committed": 0, "behind": 0},
                    "view": None if p in self.missing else "127.0.0.1:8910",
                    "projected": shown.get(p),
                    "audit_end": len(self.recorded.of("audit", p)),
                }
            )
        return _json(
            responses.Partitions,
            items=items,
            group_state="Stable",
            unassigned=[item["partition"] for item in items if item["worker"] is None],
            undecided=undecided,
            actions=self.actions,
            view=self._view(),
        )

    def _query(self, request: web.Request, model: type[Any]) -> Any:
        self.asked.append(str(request.rel_url))
        return model.model_validate(dict(request.query))

    def _page(
        self, model: type[BaseModel], items: list[Any], query: Any, **fields: Any
    ) -> web.Response:
        start = 0 if query.cursor is None else int(base64.b64decode(query.cursor))
        end = start + query.limit
        cursor = base64.b64encode(str(end).encode()).decode() if end < len(items) else None
        return _json(model, items=items[start:end], next_cursor=cursor, view=self._view(), **fields)


def summary(partition: int, flow: Any, first_event_id: int) -> dict[str, Any]:
    doc = flow.document()
    state = doc.pop("state_json")
    wait = doc["wait_json"] or {}
    return {
        **doc,
        "wait_ends_at": wait.get("at") or wait.get("timeout_at"),
        "partition": partition,
        "first_event_id": first_event_id,
        "state_bytes": len(json.dumps(state)),
    }


def _at_revision(events: Sequence[dict[str, Any]], revision: int) -> dict[str, Any]:
    flow = None
    for event in events:
        if event["revision"] <= revision:
            kind, status = EventKind(event["kind"]), FlowStatus(event["status"])
            body = (kind, event["flow_id"], event["at"], event["revision"], status)
            flow = evolve(flow, Fact(*body, event["payload_json"]))
    assert flow is not None
    made: dict[str, Any] = flow.document()
    return made


def _fits(one: dict[str, Any], query: parameters.FlowsQuery) -> bool:
    before: Callable[[str, str | None], bool] = lambda at, limit: (  # noqa: E731
        limit is None or parse_timestamp(at) < parse_timestamp(limit)
    )
    wait = one["wait_json"]
    return (
        query.owner in (None, one["owner_session_key"])
        and query.controller in (None, one["controller_id"])
        and (not query.status or one["status"] in query.status)
        and (query.q is None or _is_meant(one, query.q))
        and (query.waiting is None or (wait and query.waiting in ("any", wait["kind"])))
        and query.cancel_requested in (None, one["cancel_requested"])
        and before(one["updated_at"], query.updated_before)
        and (
            query.wait_ends_before is None
            or (one["wait_ends_at"] and before(one["wait_ends_at"], query.wait_ends_before))
        )
    )


def _is_meant(one: dict[str, Any], text: str) -> bool:
    text, conditions = split_conditions(text)
    if not all(condition.holds(one) for condition in conditions):
        return False
    return (
        text.lower() in one["goal"].lower()
        or text == one["owner_session_key"]
        or (len(text) >= 8 and one["id"].startswith(text.lower()))
    )


def _json(model: type[BaseModel], **fields: Any) -> web.Response:
    response = model.model_validate_json(json.dumps(fields, ensure_ascii=False))
    return web.Response(text=response.model_dump_json(), content_type="application/json")


def _no_such_flow() -> web.Response:
    body = responses.Problem(
        type="urn:taskflow:problem:not_found",
        title="not_found",
        status=404,
        code="not_found",
        detail="There is no such flow.",
    )
    return web.Response(
        status=404, text=body.model_dump_json(), content_type="application/problem+json"
    )


@asynccontextmanager
async def showing(views: ShownViews) -> AsyncIterator[str]:
    """The page and the API on a port of their own; its address."""
    app = web.Application()
    app.add_routes([*page_routes(), *views.routes()])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# A deployment to look at

KATE = "agent:kate:session:abc"
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)</script> \u202egnp.exe\u202c "
    "\x1b[31mred\x07 שלום עולם {{7*7}} ${alert(3)}"
)


def flow_id(n: int) -> str:
    return str(uuid5(UUID(int=0), f"flow {n}"))


def command(n: int, kind: str, **fields: Any) -> dict[str, Any]:
    made = {"kind": kind, "flow_id": flow_id(n), "issued_by": KATE, **fields}
    return {"command_id": str(uuid5(UUID(int=1), repr(sorted(made.items())))), **made}


def create(n: int, goal: str, kind: str = "create_mirrored", **fields: Any) -> dict[str, Any]:
    about = {"controller_id": "kate/inbox", "goal": goal, "requester_origin": "user-1"}
    return command(n, kind, **about, **fields)


def story() -> ShownViews:
    """Flows in every status; number 5 has managed steps, 7 is stuck, 8 is hostile."""
    now = time.time_ns() // 1_000_000
    views = ShownViews(Recorded(partitions=2, now=now - 3 * HOUR_MS), orphaned=1)
    for n in range(20, 95):
        views.send(create(n, f"reindex shard {n}"), at_ms=now - 2 * HOUR_MS + n * SECOND_MS)
        if n % 3:
            views.send(command(n, "finish", final_state={"rows": n * 100}))
    past = now - 40 * MINUTE_MS
    views.send(create(1, "triage inbox", "create_managed"), at_ms=past)
    views.send(create(2, "import orders of May"), at_ms=past)
    views.send(command(2, "fail", reason="the file has no header"), at_ms=past + 90 * SECOND_MS)
    views.send(create(3, "write the weekly letter"), at_ms=past)
    views.send(command(3, "cancel"))
    views.send(create(4, "ask the customer for a date"), at_ms=past)
    views.send(
        command(4, "set_waiting", wait={"kind": "timer", "at": instant(now + 2 * DAY_MS)}),
        at_ms=past + 8 * MINUTE_MS,
    )
    _with_steps(views, 5, past)
    views.send(create(7, "settle invoice 4711", state_json={"tries": 0}), at_ms=past)
    views.send(command(7, "update_state", patch={"tries": 1, "bank": "DE"}, next_step="pay"))
    views.send(
        command(7, "record_step_observation", run_id="run-1", task="call the bank",
                status="succeeded", result_json={"code": 200}),
    )  # fmt: skip
    wait = {"kind": "external_event", "topic": "payments.settled", "correlation_id": "inv-4711"}
    late = {**wait, "timeout_at": instant(now - 5 * MINUTE_MS)}
    views.send(command(7, "set_waiting", wait=late), at_ms=past + 12 * MINUTE_MS)
    views.send(create(8, HOSTILE, state_json={"a": HOSTILE, "__proto__": {"x": 1}}))
    views.send(command(8, "update_state", patch={"big": "x" * 250_000, HOSTILE: [HOSTILE]}))
    at = now - MINUTE_MS
    views.recorded.send(("commands", b"{<script>alert(9)</script>"), partition=0, at_ms=at)
    return views


def _with_steps(views: ShownViews, n: int, past: int) -> None:
    """One step succeeded, one is tried a third time, one failed, one is never started."""

    def at(minutes: float, kind: str, run_id: str, **fields: Any) -> None:
        who = {} if kind == "schedule_step" else {"issued_by": "bank:host-3:5c1e"}
        made = command(n, kind, run_id=run_id, **fields) | who
        made["command_id"] = str(uuid5(UUID(int=2), f"{minutes} {made}"))
        views.send(made, at_ms=past + int(minutes * MINUTE_MS))

    late = {"reason": "TimeoutError: the bank did not answer within 30 s", "retry_after_ms": 0}
    views.send(create(n, "charge the cards of May"), at_ms=past)
    for card in (1, 2, 3):
        pay = {"task": "charge", "input_json": {"card": card, "amount": 120}}
        at(1, "schedule_step", f"card-{card}", **pay)
    at(1, "schedule_step", "letter", task="print a letter")
    views.send(command(n, "set_waiting", wait={"kind": "steps"}), at_ms=past + 2 * MINUTE_MS)
    for card in (1, 2, 3):
        at(2 + card, "start_step", f"card-{card}")
    at(7, "complete_step", "card-1", attempt=1, result_json={"charged": 120})
    at(8, "fail_step", "card-2", attempt=1, reason="the card is closed", retry=False)
    at(10, "fail_step", "card-3", attempt=1, **late)
    at(14, "start_step", "card-3")
    at(22, "fail_step", "card-3", attempt=2, **late)
    at(26, "start_step", "card-3")
    for minutes in (29, 33, 37, 39.5):
        at(minutes, "extend_step", "card-3", attempt=3, progress_json={"asked": minutes})
