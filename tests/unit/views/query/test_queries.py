"""What the view's rows answer: filters, pages, words, and a flow as it was."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.contract.values import instant, parse_timestamp
from processor.domain.evolve import evolve
from processor.engine.codec import fact_of
from processor.views.http.pagination import BadCursor, keyset, read_keyset, read_vector, vector
from processor.views.http.parameters import FlowsQuery
from processor.views.query import flow_queries
from processor.views.query.flow_queries import _flows_sql
from tests.support.builders import HOUR_MS, MORNING
from tests.support.random_histories import OWNERS, random_history
from tests.support.read_model_harness import docs_of, expected, messages
from tests.support.recorded_deployment import Recorded
from tests.support.stub_views import KATE, command, create, flow_id

RECORDED = random_history(300, seed=7)
FOUND = expected(docs_of(messages(RECORDED)))


def ends(flow: Any) -> Any:
    """When its wait ends by itself."""
    wait = flow.wait_json or {}
    return wait.get("at") or wait.get("timeout_at")


async def all_of(client: Any, path: Any, limit: Any, **parameters: Any) -> Any:
    """The items of all pages, and how many pages those were."""
    items, pages, cursor = [], 0, None
    while True:
        asked = {**parameters, "limit": limit} | ({"cursor": cursor} if cursor else {})
        async with client.get(path, params=asked) as response:
            body = await response.json()
            assert response.status == 200, body
        assert len(body["items"]) <= limit
        items += body["items"]
        pages += 1
        assert pages <= 2000, "it does not end"
        cursor = body["next_cursor"]
        if cursor is None:
            return items, pages


def keys(flows: Any, sort: Any) -> Any:
    return [(parse_timestamp(one[f"{sort}_at"]), one["first_event_id"]) for one in flows]


@pytest.mark.parametrize("limit", [1, 7, 200])
@pytest.mark.parametrize("sort", ["updated", "created", "wait"])
async def test_pages_give_each_flow_once_in_order(served: Any, sort: str, limit: int) -> None:
    async with served(RECORDED) as (client, _):
        items, _ = await all_of(client, "/v1/flows", limit, sort=sort)
    wanted = {n for n, flow in FOUND.flows.items() if sort != "wait" or ends(flow)}
    assert wanted
    assert sorted(one["first_event_id"] for one in items) == sorted(wanted)
    order = keys(items, {"wait": "wait_ends"}.get(sort, sort))
    assert order == sorted(order, reverse=sort != "wait")


FILTERS: dict[str, Callable[[Any], bool]] = {
    f"owner={OWNERS[0]}": lambda flow: flow.owner_session_key == OWNERS[0],
    "owner=nobody": lambda _: False,
    "controller=load": lambda flow: flow.controller_id == "load",
    "status=running": lambda flow: flow.status == "running",
    "status=waiting,failed": lambda flow: flow.status in ("waiting", "failed"),
    "waiting=any": lambda flow: flow.wait_json is not None,
    "waiting=timer": lambda flow: (flow.wait_json or {}).get("kind") == "timer",
    "waiting=manual": lambda flow: (flow.wait_json or {}).get("kind") == "manual",
    "cancel_requested=true": lambda flow: flow.cancel_requested,
    "cancel_requested=true&status=running,waiting": (
        lambda flow: flow.cancel_requested and flow.status in ("running", "waiting")
    ),
    "cancel_requested=true&sort=created": lambda flow: flow.cancel_requested,
    "cancel_requested=false": lambda flow: not flow.cancel_requested,
    "q=endure": lambda flow: flow.goal == "Endure",
    f"q=end&owner={OWNERS[1]}&status=running": (
        lambda flow: flow.owner_session_key == OWNERS[1] and flow.status == "running"
    ),
}


async def test_a_filter_finds_those_that_it_names(served: Any) -> None:
    async with served(RECORDED) as (client, _):
        for asked, fits in FILTERS.items():
            parameters = dict(part.split("=") for part in asked.split("&"))
            items, _ = await all_of(client, "/v1/flows", 50, **parameters)
            wanted = [n for n, flow in FOUND.flows.items() if fits(flow)]
            assert sorted(one["first_event_id"] for one in items) == sorted(wanted), asked


BY_INDEX = {
    "": "flow_updated",
    "sort=created": "flow_created",
    "sort=wait": "flow_waits",
    "owner=a": "flow_owner",
    "owner=a&status=failed&waiting=timer&cancel_requested=true": "flow_owner",
    "controller=a&status=failed,cancelled": "flow_controller",
    "status=running&updated_before=2026-01-01T00:00:00Z": "flow_status",
    "status=running,waiting": "flow_updated",
    "status=running,waiting&cancel_requested=true": "flow_cancel",
    "waiting=timer": "flow_waiting",
}


async def test_every_list_comes_in_order_from_its_index_and_sorts_nothing(served: Any) -> None:
    async with served(RECORDED) as (_, view):
        for asked, index in BY_INDEX.items():
            parameters = dict(part.split("=") for part in asked.split("&") if part)
            sql, values, _ = _flows_sql(FlowsQuery.model_validate(parameters), [0, 1])
            plan = [row[3] for row in await view.database.read(f"EXPLAIN QUERY PLAN {sql}", values)]
            assert len(plan) == 1, (asked, plan)
            assert f"INDEX {index}" in plan[0], (asked, plan)


@pytest.mark.parametrize("field", ["created", "updated"])
async def test_flows_are_found_by_their_age(served: Any, field: str) -> None:
    times = sorted(getattr(flow, f"{field}_at") for flow in FOUND.flows.values())
    limit = times[len(times) // 2]
    async with served(RECORDED) as (client, _):
        for name, fits in (("after", limit.__lt__), ("before", limit.__gt__)):
            items, _ = await all_of(client, "/v1/flows", 50, **{f"{field}_{name}": limit})
            wanted = [n for n, f in FOUND.flows.items() if fits(getattr(f, f"{field}_at"))]
            assert sorted(one["first_event_id"] for one in items) == sorted(wanted)


@pytest.mark.parametrize("limit", [3, 200])
async def test_pages_give_each_event_once_newest_first(served: Any, limit: int) -> None:
    async with served(RECORDED) as (client, _):
        items, _ = await all_of(client, "/v1/events", limit)
        some, _ = await all_of(client, "/v1/events", limit, kind="created,failed", owner=OWNERS[0])
    assert sorted(one["id"] for one in items) == sorted(FOUND.events)
    assert [one["at"] for one in items] == sorted((one["at"] for one in items), reverse=True)
    assert {one["kind"] for one in some} == {"created", "failed"}
    owners = {
        e["flow_id"]: e["payload_json"]["owner_session_key"]
        for e in FOUND.events.values()
        if e["kind"] == "created"
    }
    assert sorted(one["id"] for one in some) == sorted(
        at
        for at, e in FOUND.events.items()
        if e["kind"] in ("created", "failed") and owners[e["flow_id"]] == OWNERS[0]
    )


async def test_a_history_is_the_events_of_the_flow_either_way(served: Any) -> None:
    chosen = [e["flow_id"] for e in FOUND.events.values()]
    longest = max(set(chosen), key=chosen.count)
    own = [e for _, e in sorted(FOUND.events.items()) if e["flow_id"] == longest]
    assert len(own) > 3
    async with served(RECORDED) as (client, _):
        path = f"/v1/flows/{longest}/history"
        assert (await all_of(client, path, 2))[0] == own
        assert (await all_of(client, path, 2, order="desc"))[0] == own[::-1]


async def test_a_flow_is_shown_as_it_was_at_each_of_its_revisions(served: Any) -> None:
    asked = 0
    async with served(RECORDED) as (client, _):
        for number, last in [*FOUND.flows.items()][:12]:
            flow = None
            was: dict[int, Any] = {}
            own = [e for at, e in sorted(FOUND.events.items()) if at >= number]
            for event in (e for e in own if e["flow_id"] == last.id):
                flow = evolve(flow, fact_of(event))
                was[event["revision"]] = flow
            for revision, wanted in was.items():
                async with client.get(f"/v1/flows/{last.id}?revision={revision}") as response:
                    assert (await response.json())["flow"] == wanted.document()
                asked += 1
            async with client.get(f"/v1/flows/{last.id}") as response:
                assert (await response.json())["flow"] == last.document()
    assert asked > 20


async def test_steps_are_shown_as_they_were_too(served: Any) -> None:
    recorded = Recorded()
    recorded.send(("commands", create(1, "steps")))
    for status in ("running", "succeeded"):
        step = command(1, "record_step_observation", run_id="r", task="t", status=status)
        recorded.send(("commands", step))
        recorded.send(("commands", command(1, "update_state", patch={"at": status})))
    async with served(recorded) as (client, _):
        revision = {"running": None, "succeeded": None}
        async with client.get(f"/v1/flows/{flow_id(1)}/history") as response:
            for event in (await response.json())["items"]:
                if event["kind"] == "state_updated":
                    revision[event["payload_json"]["patch"]["at"]] = event["revision"]
        for status, at in revision.items():
            async with client.get(f"/v1/flows/{flow_id(1)}?revision={at}") as response:
                body = await response.json()
                assert body["flow"]["state_json"]["at"] == status
        assert body["steps"][0]["status"] == "succeeded"


async def test_words_of_the_goal_are_found_whatever_their_case_and_accents(served: Any) -> None:
    recorded = Recorded()
    goals = [
        "Réindex the Ünïcode shard",
        "reindex shard 2",
        'NOT a "query" OR NEAR(x)',
        "שלום עולם",
    ]
    for n, goal in enumerate(goals):
        recorded.send(("commands", create(n, goal)))
    async with served(recorded) as (client, _):
        for words, found in (
            ("reindex", [1, 0]),
            ("REINDEX sha", [1, 0]),
            ("shard unicode", [0]),
            ("שלום", [3]),
            ('not "query" or near(', [2]),
            ("reindex* NOT shard", []),
            ("dex", []),
            ("a_query", [2]),
            ("goal:reindex -shard", []),
        ):
            items, _ = await all_of(client, "/v1/flows", 1, q=words)
            assert [goals.index(one["goal"]) for one in items] == found, words


async def test_an_id_or_its_beginning_or_an_owner_is_found(served: Any) -> None:
    recorded = Recorded(partitions=2)
    for n in range(4):
        recorded.send(("commands", create(n, f"goal of {KATE}" if n == 2 else f"goal {n}")))
    joe = create(9, "ask kate", issued_by="team/joe 1")
    recorded.send(("commands", joe))
    async with served(recorded) as (client, _):
        for text, found in (
            *((flow_id(3), [3]), (f" {flow_id(3).upper()[:8]} ", [3]), (flow_id(3)[:12], [3])),
            *((flow_id(3)[:7], []), (f"{flow_id(3)[:8]}0-0000", []), ("0" * 8, [])),
            *((KATE, [0, 1, 2, 3]), ("team/joe 1", [9]), ("team/joe", []), ("kate", [2, 9])),
        ):
            items, _ = await all_of(client, "/v1/flows", 1, q=text)
            wanted = {flow_id(n) for n in found}
            assert {one["id"] for one in items} == wanted, text
            assert len(items) == len(wanted), text
        items, _ = await all_of(client, "/v1/flows", 1, q=KATE, status="waiting")
        assert items == []


async def test_flows_that_wait_for_steps_are_found(served: Any) -> None:
    recorded = Recorded()
    for n, wait in enumerate(({"kind": "steps"}, {"kind": "manual"})):
        recorded.send(("commands", create(n, "work")))
        recorded.send(("commands", command(n, "schedule_step", run_id="r", task="t")))
        recorded.send(("commands", command(n, "set_waiting", wait=wait)))
    async with served(recorded) as (client, _):
        items, _ = await all_of(client, "/v1/flows", 9, waiting="steps")
        assert [one["id"] for one in items] == [flow_id(0)]


async def test_flows_whose_wait_ends_are_found_soonest_first(served: Any) -> None:
    recorded = Recorded()
    for n, hours in enumerate((3, 1, 2)):
        recorded.send(("commands", create(n, "wait")))
        at = instant(MORNING + hours * HOUR_MS)
        recorded.send(("commands", command(n, "set_waiting", wait={"kind": "timer", "at": at})))
    recorded.send(("commands", create(4, "never waits")))
    async with served(recorded) as (client, _):
        items, _ = await all_of(client, "/v1/flows", 2, sort="wait")
        assert [one["id"] for one in items] == [flow_id(n) for n in (1, 2, 0)]
        limit = instant(MORNING + 2 * HOUR_MS)
        items, _ = await all_of(client, "/v1/flows", 2, sort="wait", wait_ends_before=limit)
        assert [one["id"] for one in items] == [flow_id(1)]


async def test_pages_of_dead_letters_give_each_once_newest_first(served: Any) -> None:
    dead_letters = messages(RECORDED, "deadletters")
    assert len(dead_letters) > 1
    async with served(RECORDED) as (client, _):
        items, pages = await all_of(client, "/v1/deadletters", 1)
    assert pages == len(dead_letters)
    assert sorted((one["partition"], one["offset"]) for one in items) == sorted(
        (dead_letter.partition, dead_letter.offset) for dead_letter in dead_letters
    )
    assert all(a["at"] >= b["at"] for a, b in pairwise(items))


NUMBERS = st.integers(0, 2**63 - 1)


@settings(max_examples=50)
@given(st.lists(NUMBERS, max_size=3), st.dictionaries(st.integers(0, 99_999), NUMBERS, max_size=4))
def test_cursors_come_back_as_they_were(key: Any, positions: Any) -> None:
    assert read_keyset(keyset("x", *key), "x", len(key)) == tuple(key)
    assert read_vector(vector(positions)) == positions
    for other in (("y", len(key)), ("x", len(key) + 1)):
        with pytest.raises(BadCursor):
            read_keyset(keyset("x", *key), *other)


@settings(max_examples=30)
@given(st.text(max_size=30))
def test_any_other_text_is_no_cursor(text: Any) -> None:
    for reading in (lambda: read_keyset(text, "updated", 2), lambda: read_vector(text)):
        with pytest.raises(BadCursor):
            reading()


async def test_words_without_spaces_are_found_wherever_they_stand(served: Any) -> None:
    recorded = Recorded()
    for n, goal in enumerate(
        ("注文4711の在庫を確認する", "발주를 확인한다", "注文を取り消す", "Order 4711")
    ):
        recorded.send(("commands", create(n, goal)))
    async with served(recorded) as (client, _):
        for text, wanted in (
            *(("在庫", [0]), ("注文", [0, 2]), ("確認する", [0]), ("在", [0]), ("庫", [0])),
            *(("在庫 4711", [0]), ("4711 注文", [0]), ("注文4711", [0]), ("4711", [0, 3])),
            *(("발주", [1]), ("확인", [1]), ("在注", []), ("取り消", [2]), ("文4", [0])),
        ):
            items, _ = await all_of(client, "/v1/flows", 10, q=text)
            assert sorted(one["id"] for one in items) == sorted(map(flow_id, wanted)), text


async def test_it_is_said_when_conditions_were_not_looked_for_in_all_flows(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded()
    for n in range(6):
        recorded.send(("commands", create(n, f"Goal {n}", state_json={"n": n})))
    monkeypatch.setattr(flow_queries, "SCANNED_MAX", 4)
    async with served(recorded) as (client, _):
        for query, items, whole in (
            ({"q": "state.n < 9", "limit": 3}, 3, True),  # its cursor goes on
            ({"q": "state.n < 9", "limit": 4}, 4, False),
            ({"q": "state.n > 8"}, 0, False),
            ({"q": "goal state.n > 8"}, 0, False),
            ({"q": "state.n > 8", "owner": "nobody"}, 0, True),
            ({"q": "goal"}, 6, True),
        ):
            async with client.get("/v1/flows", params=query) as response:
                body = await response.json()
            assert (len(body["items"]), body["searched_all"]) == (items, whole), query


CONDITIONS = {
    "state.priority=high": [0],
    "state.priority = high": [0],
    "!state.priority": [2],
    "state.tries > 2": [0],
    "state.tries >= 1": [0, 1],
    "state.tries > 0 state.priority != high": [1],
    "invoice state.priority = low": [1],
    "invoice revision > 0": [0, 1],
    "status = created": [2],
    "cancel_requested = false": [0, 1, 2],
    "created_at > 2020-01-01 !wait.kind": [0, 1, 2],
    "wait.kind = manual": [],
    f"id = {flow_id(2)}": [2],
    'goal ~ "of M"': [1],
    "state.list[1] = é": [1],
    'state["a name"] ~ "\\""': [2],
    f"{KATE} state.tries=1": [1],
}


async def test_a_field_is_found_in_the_language_of_where(served: Any) -> None:
    recorded = Recorded()
    made = [
        ("invoice 1", "create_mirrored", {"priority": "high", "tries": 3}),
        ("invoice of May", "create_mirrored", {"priority": "low", "tries": 1, "list": [0, "é"]}),
        ("report", "create_managed", {"a name": 'a "quote"'}),
    ]
    for n, (goal, kind, state) in enumerate(made):
        recorded.send(("commands", create(n, goal, kind, state_json=state)))
    async with served(recorded) as (client, _):
        for text, wanted in CONDITIONS.items():
            items, _ = await all_of(client, "/v1/flows", 1, q=text)
            assert sorted(one["id"] for one in items) == sorted(map(flow_id, wanted)), text
        items, _ = await all_of(client, "/v1/flows", 1, q="state.tries > 0", status="running")
        assert len(items) == 2
        for text, problem in (
            ("state.tries == 1", "== is not an operator; write ="),
            ("status = dancing", "status"),
            ("invoice state.", None),
        ):
            async with client.get("/v1/flows", params={"q": text}) as response:
                body = await response.json()
                assert response.status == (200 if problem is None else 400), text
                assert problem is None or problem in body["detail"]
