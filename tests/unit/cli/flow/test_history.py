"""`taskflow flow history`, `diff`, `blame`, and `show` as of then: what they make of events."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from processor.cli.flow import execute as flow_program
from processor.cli.flow import history as travel
from processor.cli.main import DONE, REFUSED, WRONG_USE, main
from processor.contract.values import instant
from processor.testing.memory.record import Appended
from tests.support.builders import (
    FLOW_ID,
    HOUR_MS,
    MORNING,
    OPERATOR,
    OWNER,
    TIMER,
    document,
    timer,
)
from tests.support.partition import Partition, Sent

ABOUT = {"controller_id": "c", "goal": "g", "requester_origin": "r"}


@dataclass
class Past:
    """What happened to the flow, an hour between each two commands."""

    records: list[Appended]
    outcomes: dict[int, dict[str, Any]]


@pytest.fixture
def past(monkeypatch: pytest.MonkeyPatch) -> Past:
    commands = [
        ("commands", document("create_managed", **ABOUT, state_json={"price": 1, "items": []})),
        ("commands", document("start_running")),
        ("commands", document("update_state", patch={"price": 2})),
        ("commands", _observed("running")),
        ("commands", document("set_waiting", wait=timer(MORNING + 5 * HOUR_MS))),
        ("control", document("wake", issued_by=TIMER)),
        ("control", document("fail", reason="enough", issued_by=OPERATOR)),
        ("control", document("prune", issued_by="taskflow:retention")),
        ("commands", document("create_mirrored", **ABOUT)),
        ("commands", document("finish")),
    ]
    return _recorded(monkeypatch, commands)


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Past:
    """A managed step is done at the second attempt, and the flow resumed."""

    def of(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        return "commands", document(kind, run_id="card 7", issued_by="bank:one", **fields)

    fail = {"reason": "no answer", "retry_after_ms": 0}
    return _recorded(
        monkeypatch,
        [
            ("commands", document("create_mirrored", **ABOUT)),
            ("commands", document("schedule_step", run_id="card 7", task="charge")),
            ("commands", document("set_waiting", wait={"kind": "steps"})),
            of("start_step"),
            of("fail_step", attempt=1, **fail),
            of("start_step"),
            of("complete_step", attempt=2, result_json={"charged": 1}),
        ],
    )


def _recorded(
    monkeypatch: pytest.MonkeyPatch, commands: Sequence[tuple[str, dict[str, Any]]]
) -> Past:
    partition = Partition()
    past = Past([], {})
    for hour, (name, command) in enumerate(commands):
        at_ms = MORNING + hour * HOUR_MS
        ((outcome, events, _),) = partition.send(Sent(name, at_ms, command))
        assert outcome["verdict"] == "accepted", outcome
        for event in events:
            place = ("taskflow.audit", 0, len(past.records), at_ms, FLOW_ID.encode())
            past.records.append(Appended(*place, orjson.dumps(event)))
            past.outcomes[event["id"]] = outcome

    async def read(*_: Any) -> list[Appended]:
        return past.records

    async def outcomes_of(_: Any, __: Any, event_ids: list[int]) -> dict[int, dict[str, Any]]:
        return {event_id: past.outcomes[event_id] for event_id in event_ids}

    monkeypatch.setattr(travel, "_read", read)
    monkeypatch.setattr(travel, "outcomes_of", outcomes_of)
    return past


def _observed(status: str) -> dict[str, Any]:
    return document("record_step_observation", run_id="run 1", task="t", status=status)


def taskflow(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = DONE) -> list[Any]:
    found = main(["flow", *arguments])
    out, err = capsys.readouterr()
    assert found == code, err
    return [orjson.loads(line) for line in out.splitlines()] if code == DONE else [err]


def test_history_says_who_what_why_and_how_long(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = taskflow(capsys, "history", FLOW_ID)

    assert [line["kind"] for line in lines] == [
        *("created", "started", "state_updated", "step_observed", "waiting", "resumed", "failed"),
        *("pruned", "created", "started", "finished"),
    ]
    resumed = lines[5]
    assert (resumed["actor"], resumed["explained"]) == (
        TIMER,
        {
            "command": "wake",
            "message": "The wait has ended.",
            "topic": "control",
            "left": {"status": "waiting", "for_ms": HOUR_MS},
            "wait_ended_by": "timer",
        },
    )
    assert [line["explained"]["left"] for line in lines] == [
        None,
        {"status": "created", "for_ms": HOUR_MS},
        None,
        None,
        {"status": "running", "for_ms": 3 * HOUR_MS},
        {"status": "waiting", "for_ms": HOUR_MS},
        {"status": "running", "for_ms": HOUR_MS},
        {"status": "failed", "for_ms": HOUR_MS},
        None,
        {"status": "created", "for_ms": 0},
        {"status": "running", "for_ms": HOUR_MS},
    ]


def test_history_for_people(
    past: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(travel, "for_people", lambda json: not json)

    assert main(["flow", "history", FLOW_ID]) == DONE

    assert_shown_to_people(capsys.readouterr().out)


def test_history_for_people_is_the_same_from_views(
    past: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def shown_history(_: Any, flow_id: str) -> list[dict[str, Any]]:
        assert flow_id == FLOW_ID
        return [orjson.loads(record.value or b"") for record in past.records]

    async def read(*_: Any) -> list[Appended]:
        raise AssertionError("the topic is not read")

    monkeypatch.setattr(travel, "for_people", lambda json: not json)
    monkeypatch.setattr(travel, "shown_history", shown_history)
    monkeypatch.setattr(travel, "_read", read)

    assert main(["flow", "history", FLOW_ID]) == DONE

    assert_shown_to_people(capsys.readouterr().out)


def test_a_pipe_is_answered_from_the_topic(
    past: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def shown_history(*_: Any) -> None:
        raise AssertionError("views are not asked")

    monkeypatch.setattr(travel, "shown_history", shown_history)

    assert len(taskflow(capsys, "history", FLOW_ID)) == len(past.records)


def assert_shown_to_people(out: str) -> None:
    assert "life 1" in out
    assert re.search("timer: wake on control +1 h waiting", out)
    assert "In all: created 1 h, running 4 h, waiting 1 h, failed 1 h." in out
    assert "finished for" in out


def test_a_flow_as_it_was(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = taskflow(capsys, "show", FLOW_ID, "--revision", "2", "--life", "1")
    (then,) = taskflow(capsys, "show", FLOW_ID, "--at", instant(MORNING + 2 * HOUR_MS + 1))
    (late,) = taskflow(capsys, "show", FLOW_ID, "--at", instant(MORNING + 3 * HOUR_MS))
    (last,) = taskflow(capsys, "show", FLOW_ID, "--revision", "1")

    assert first["flow"]["state_json"] == {"price": 2, "items": []}
    assert first["as_of"]["kind"] == "step_observed"
    assert [step["run_id"] for step in first["steps"]] == ["run 1"]
    assert then["flow"] == first["flow"] == late["flow"]
    assert (then["steps"], late["steps"]) == ([], first["steps"])
    assert (last["flow"]["status"], last["as_of"]["kind"]) == ("running", "started")


@pytest.mark.parametrize(
    ("arguments", "code", "about"),
    [
        (["show", "--revision", "9"], REFUSED, "has revisions 0 to 2 in this life"),
        (["show", "--revision", "1", "--life", "3"], REFUSED, "has had 2 lives so far"),
        (["show", "--at", "2020-01-01T00:00:00Z"], REFUSED, "it was created later"),
        (["show", "--at", instant(MORNING + 7 * HOUR_MS + 1)], REFUSED, "it had been pruned"),
        (["show", "--at", "1h", "--revision", "1"], WRONG_USE, "take one"),
        (["show", "--life", "1"], WRONG_USE, "--life says of which life"),
        (["diff", "0", "9"], REFUSED, "has revisions 0 to 2"),
        (["blame", "state.nothing"], REFUSED, "Nothing ever stood at $.state_json.nothing"),
        (["blame", "$.nothing"], WRONG_USE, "a flow has no field 'nothing'"),
        (["blame", "$.stat.price"], WRONG_USE, "did you mean state?"),
        (["blame", "$.*"], WRONG_USE, "is not understood"),
    ],
)
def test_what_was_never_so_is_said(
    past: Past,
    arguments: list[str],
    code: int,
    about: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *rest = arguments

    (said,) = taskflow(capsys, name, FLOW_ID, *rest, code=code)

    assert about in said


def test_a_flow_that_never_was_has_no_past(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    past.records.clear()

    for rest in (["history"], ["diff", "0", "1"], ["blame", "$"], ["show", "--revision", "0"]):
        (said,) = taskflow(capsys, rest[0], FLOW_ID, *rest[1:], code=REFUSED)
        assert said == f"There is no flow {FLOW_ID} under 'taskflow'.\n"


def test_a_difference_has_a_line_for_each_place(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = taskflow(capsys, "diff", FLOW_ID, "1", "2", "--life", "1")

    changed = {line["path"]: (line.get("before"), line.get("after")) for line in lines}
    assert changed.pop("$.updated_at") is not None
    steps = changed.pop("$.steps['run 1']")
    assert steps[1]["status"] == "running"
    assert changed == {"$.state_json.price": (1, 2), "$.revision": (1, 2)}
    assert taskflow(capsys, "diff", FLOW_ID, "2", "2") == []


def test_blame_names_event_command_and_actor(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    (price,) = taskflow(capsys, "blame", FLOW_ID, "$.state_json.price", "--life", "1")
    assert taskflow(capsys, "blame", FLOW_ID, "state.price", "--life", "1") == [price]
    (status,) = taskflow(capsys, "blame", FLOW_ID, "status")

    assert (price["path"], price["before"], price["after"]) == ("$.state_json.price", 1, 2)
    assert (price["actor"], price["event"]["kind"]) == (OWNER, "state_updated")
    assert price["command"]["kind"] == "update_state"
    assert price["command"]["command_id"] == price["event"]["command_id"]
    assert price["command"]["source"]["offset"] == 2
    assert (status["before"], status["after"]) == ("running", "finished")


def test_time_travel_and_blame_know_the_attempts_of_a_step(
    worked: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    at = instant(MORNING + 4 * HOUR_MS)
    (then,) = taskflow(capsys, "show", FLOW_ID, "--at", at)
    path = "$.steps['card 7'].execution"
    (failure,) = taskflow(capsys, "blame", FLOW_ID, f"{path}.last_failure.reason")
    (attempt,) = taskflow(capsys, "blame", FLOW_ID, f"{path}.attempt")
    changed = {line["path"] for line in taskflow(capsys, "diff", FLOW_ID, "1", "3")}

    (step,) = then["steps"]
    assert (step["status"], step["execution"]["attempt"]) == ("pending", 1)
    assert step["execution"]["last_failure"] == {"reason": "no answer", "at": at}
    assert (failure["command"]["kind"], failure["actor"]) == ("fail_step", "bank:one")
    assert ("before" in failure, failure["after"]) == (False, "no answer")
    assert (attempt["command"]["kind"], attempt["after"]) == ("start_step", 2)
    assert {"$.status", f"{path}.attempt", "$.steps['card 7'].result_json"} & changed == {
        f"{path}.attempt",
        "$.steps['card 7'].result_json",
    }


def test_history_names_step_attempt_and_failure(
    worked: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(travel, "for_people", lambda json: not json)

    assert main(["flow", "history", FLOW_ID]) == DONE

    out = capsys.readouterr().out
    for past in (
        *("card 7 0/3             schedule_step", "card 7 1/3: no answer  fail_step"),
        *("card 7 2/3             complete_step", "by steps               steps: complete_step"),
    ):
        assert past in out, out


def test_people_see_tables(
    past: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(travel, "for_people", lambda json: not json)
    monkeypatch.setattr(flow_program, "for_people", lambda json: not json)

    assert main(["flow", "diff", FLOW_ID, "1", "2", "--life", "1"]) == DONE
    assert "$.state_json.price  1" in capsys.readouterr().out
    assert main(["flow", "diff", FLOW_ID, "1", "1"]) == DONE
    assert capsys.readouterr().err == "Nothing differs.\n"
    assert main(["flow", "blame", FLOW_ID, "$.state_json.price", "--life", "1"]) == DONE
    assert "state_updated, id 3, revision 2" in capsys.readouterr().out
    assert main(["flow", "show", FLOW_ID, "--revision", "3", "--life", "1"]) == DONE
    shown = capsys.readouterr()
    assert any(
        line.split() == ["(time", "left)", "in", "1", "h"] for line in shown.out.splitlines()
    )
    assert "As of waiting, event 5" in shown.err
