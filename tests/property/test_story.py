"""Time travel and blame, beside a brute-force fold of the events by the contract's own words."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from processor.contract.values import instant, parse_timestamp
from processor.domain.transitions import Authority
from processor.ops import flow_timeline as story
from processor.ops.json_path import parse
from tests.support.builders import FLOW_ID
from tests.support.partition import Partition, Sent
from tests.support.strategies import lives

Doc = dict[str, Any]


def recorded(history: Any) -> list[Doc]:
    """The FlowEvents that commands cause, sent in the order in which they were drawn."""
    partition = Partition()
    sent = [
        Sent(
            "commands" if authority is Authority.OWNER else "control",
            at_ms,
            json.loads(command.model_dump_json(exclude_unset=True)),
        )
        for command, at_ms, authority in sorted(history, key=lambda one: one[1])
    ]
    return [event for _, events, _ in partition.send(*sent) for event in events]


def brute_force(events: list[Doc]) -> list[Doc | None]:
    """The flow with its steps after each event, as schemas/README.md words it."""
    states: list[Doc | None] = []
    doc: Doc | None = None
    for event in events:
        payload = event["payload_json"]
        doc = json.loads(json.dumps(doc))
        match event["kind"]:
            case "created":
                doc = {
                    **{"id": event["flow_id"], "wait_json": None, "cancel_requested": False},
                    **{"created_at": event["at"], "steps": {}, **payload},
                }
            case "pruned":
                states.append(None)
                doc = None
                continue
            case "step_observed" | "step_scheduled":
                doc["steps"][payload["step"]["run_id"]] = payload["step"]
            case kind if kind.startswith("step_"):
                doc["steps"][payload["run_id"]] |= payload["changes"]
            case "waiting":
                doc["wait_json"] = payload["wait"]
            case "resumed":
                doc["wait_json"] = None
                patch(doc, payload["state_patch"])
            case "finished":
                patch(doc, payload["final_state"])
            case "failed":
                doc["wait_json"] = None
                patch(doc, {"failure": {"reason": payload["reason"], "at": event["at"]}})
            case "state_updated":
                patch(doc, payload["patch"], null_is_one=True)
                doc["current_step"] = payload["next_step"] or doc["current_step"]
            case "cancel_requested":
                doc["cancel_requested"] = True
            case "cancelled":
                doc["wait_json"] = None
        if not event["kind"].startswith("step_"):
            doc["updated_at"] = event["at"]
        doc["revision"], doc["status"] = event["revision"], event["status"]
        states.append(doc)
    return states


def patch(doc: Doc, change: Any, *, null_is_one: bool = False) -> None:
    if change is None and not null_is_one:
        return
    both = isinstance(doc["state_json"], dict) and isinstance(change, dict)
    doc["state_json"] = {**doc["state_json"], **change} if both else change


def walked(value: Any, path: str = "$") -> dict[str, str]:
    """Each innermost place of a value, with what stands there, as text."""
    if isinstance(value, dict) and value:
        return {p: v for n, one in value.items() for p, v in walked(one, key(path, n)).items()}
    if isinstance(value, list) and value:
        return {p: v for i, one in enumerate(value) for p, v in walked(one, f"{path}[{i}]").items()}
    return {path: json.dumps(value, sort_keys=True)}


def key(path: str, name: str) -> str:
    return f"{path}[{json.dumps(name)}]"


def text_at(value: Any, path: str) -> str | None:
    """What stands at a path, as text; None: nothing."""
    for step in parse(path):
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return json.dumps(value, sort_keys=True)


@settings(max_examples=40)
@given(lives())
def test_at_every_revision_and_every_time_it_is_as_a_brute_force_fold_says(history: Any) -> None:
    events = recorded(history)
    states = brute_force(events)
    explained = story.lives((event, None) for event in events)

    assert [moment.document for life in explained for moment in life.moments] == states
    for at_ms in {0} | {parse_timestamp(e["at"]) + d for e in events for d in (-1, 0, 1)}:
        before = [n for n, event in enumerate(events) if event["at"] <= instant(at_ms)]
        moment = story.at_time(explained, at_ms)
        if not before:
            assert moment is None
        else:
            assert moment is not None
            assert moment.event == events[before[-1]]
            assert moment.document == states[before[-1]]
    start = 0
    for life in explained:
        mine = states[start : start + len(life.moments)]
        start += len(life.moments)
        for revision in range(-1, life.revisions[1] + 2):
            of = [state for state in mine if state is not None and state["revision"] == revision]
            moment = life.at_revision(revision)
            assert (moment and moment.document) == (of[-1] if of else None)


@settings(max_examples=40)
@given(lives())
def test_blame_names_the_last_event_that_changed_a_place(history: Any) -> None:
    events = recorded(history)
    states = brute_force(events)
    start = 0
    for life in story.lives((event, None) for event in events):
        mine = [*zip(events[start:], states[start:], strict=True)][: len(life.moments)]
        start += len(life.moments)
        places = {place for _, state in mine if state for place in walked(state)}
        for place in {*places, "$.state_json", "$.steps", "$.never_there"}:
            expected, before = None, None
            for event, state in mine:
                if state is None:
                    continue
                after = text_at(state, place)
                if after != before:
                    expected = event
                before = after
            found = life.blame(parse(place))
            assert (found and found.event) == expected, place


@settings(max_examples=40)
@given(lives(), st.data())
def test_a_difference_names_the_places_in_which_two_revisions_differ(
    history: Any, data: Any
) -> None:
    events = recorded(history)
    for life in story.lives((event, None) for event in events):
        first, last = life.revisions
        one, other = (
            life.at_revision(data.draw(st.integers(first, last), label="revision"))
            for _ in range(2)
        )
        assert one is not None
        assert other is not None
        found = story.difference(one, other)
        places = {*walked(one.document), *walked(other.document)}
        differing = {p for p in places if text_at(one.document, p) != text_at(other.document, p)}
        named = [parse(change.path) for change in found]
        # What is empty on one side is named by what it holds on the other.
        for place in map(parse, differing):
            assert any(place[: len(n)] == n or n[: len(place)] == place for n in named), place
        for change in found:
            assert text_at(one.document, change.path) != text_at(other.document, change.path)


@settings(max_examples=40)
@given(lives())
def test_the_stays_cover_a_life_without_a_gap(history: Any) -> None:
    events = recorded(history)
    assert {event["flow_id"] for event in events} <= {FLOW_ID}
    for life in story.lives((event, None) for event in events):
        stays = life.stays()
        assert stays[0].entered_ms == life.moments[0].at_ms
        for stay, following in pairwise(stays):
            assert stay.left_ms == following.entered_ms
            assert stay.status != following.status
        assert (stays[-1].left_ms is None) != life.pruned
        explained = story.explanations(life)
        assert [one.event for one in explained] == [moment.event for moment in life.moments]
        left = [one.left for one in explained if one.left is not None]
        assert left == [stay for stay in stays if stay.left_ms is not None]
        for one in explained:
            waited = one.left is not None and one.left.status == "waiting"
            assert (one.ended is not None) == waited
