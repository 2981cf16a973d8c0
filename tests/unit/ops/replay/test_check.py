"""Recorded commands through the code at hand: an unchanged build, and builds with one rule changed,
which must show in the commands that the rule touches and in no others."""

from collections.abc import Callable, Iterator
from gzip import compress, decompress
from pathlib import Path
from typing import Any

import orjson
import pytest

import processor.engine.batch_outcomes as outcomes_module
import processor.engine.command_handler as handler_module
from processor.cli.main import DONE, REFUSED, WRONG_USE, main
from processor.cli.replay import check as program
from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.values import instant, parse_timestamp
from processor.domain import evolve as evolve_module
from processor.domain import messages
from processor.domain.decide import decide
from processor.domain.decision import Decision, happened, rejected
from processor.engine.batch import Forward
from processor.engine.rows import Changes
from processor.ops.replay import check as check_module
from processor.ops.replay import differences
from processor.ops.replay.differences import Findings
from processor.ops.replay.file_writer import writing
from processor.ops.replay.recorded_history import HistoryUnusable, Rules
from processor.ops.replay.store import LEDGER_MAX, ReplayStore, open_store
from tests.support.builders import HOUR_MS, MORNING, document, manual
from tests.support.json_values import json_of
from tests.support.random_histories import check, check_file, export, random_history, rules_of
from tests.support.recorded_deployment import Recorded

COUNT = 4_000
PARTITIONS = 2
Place = tuple[str, int, int]


@pytest.fixture(scope="module")
def history() -> Recorded:
    return random_history(COUNT, seed=11, partitions=PARTITIONS)


@pytest.fixture(autouse=True)
def _all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "EXAMPLES", 10**9)


def touched(findings: Findings, record: str | None = None) -> set[Place]:
    return {
        (one.topic.rpartition(".")[2], one.partition, one.offset)
        for one in findings.first
        if record in (None, one.record)
    }


def decided(recorded: Recorded) -> Iterator[tuple[Place, dict[str, Any], dict[str, Any]]]:
    """Place, command and outcome of all that could be read."""
    for partition in range(recorded.partitions):
        sources = {
            (name, record.offset): record
            for name in ("commands", "control")
            for record in recorded.of(name, partition)
        }
        for record in recorded.of("outcomes", partition):
            outcome = json_of(record)
            name = outcome["source"]["topic"].rpartition(".")[2]
            place = (name, partition, outcome["source"]["offset"])
            if outcome["verdict"] != "quarantined":
                yield place, json_of(sources[place[0], place[2]]), outcome


def text_of(findings: Findings) -> str:
    return "\n".join(map(str, findings.first[:5]))


async def test_an_unchanged_build_decides_everything_as_it_was(history: Recorded) -> None:
    findings = await check(history)

    assert findings.ok, text_of(findings)
    assert findings.commands.total() >= COUNT
    assert len(findings.commands) > 12
    assert findings.records["outcomes"] == findings.commands.total()
    assert findings.records["events"] == len(history.of("audit", 0)) + len(history.of("audit", 1))
    for record in ("dead_letters", "wakes", "copies", "snapshots"):
        assert findings.records[record] > 0, record
    assert not findings.not_compared


async def test_a_file_holds_all_of_it_and_is_the_same_each_time(
    history: Recorded, tmp_path: Path
) -> None:
    await export(history, tmp_path / "one.gz")
    await export(history, tmp_path / "two.gz")

    from_file, from_topics = await check_file(tmp_path / "one.gz"), await check(history)

    assert from_file.ok, text_of(from_file)
    assert from_file.as_json() == from_topics.as_json()
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


async def test_what_does_not_fit_into_memory_is_in_a_file(history: Recorded) -> None:
    findings = await check(history, flows_bytes=40_000, ledger_max=50)

    assert findings.ok, text_of(findings)
    assert findings.commands.total() >= COUNT


# One rule changed

Planted = Callable[[pytest.MonkeyPatch], None]
Touched = Callable[[dict[str, Any], dict[str, Any]], bool]


def accepted(outcome: dict[str, Any]) -> bool:
    """Now, or when it was first sent."""
    return "accepted" in (outcome["verdict"], outcome.get("original"))


def resume_needs_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(command: Any, *args: Any, **more: Any) -> Decision:
        decision = decide(command, *args, **more)
        if decision.accepted and command.kind == "resume" and command.state_patch["resumed"] < 3:
            return rejected(Code.INVALID_DATA)
        return decision

    monkeypatch.setattr(handler_module, "decide", changed)


def finish_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(command: Any, *args: Any, **more: Any) -> Decision:
        decision = decide(command, *args, **more)
        if command.kind == "finish" and decision.facts:
            (fact,) = decision.facts
            return Decision((fact._replace(payload={"final_state": {"by": "a planted rule"}}),))
        return decision

    monkeypatch.setattr(handler_module, "decide", changed)


def a_created_flow_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(command: Any, flow: Any, at_ms: int, **more: Any) -> Decision:
        decision = decide(command, flow, at_ms, **more)
        if command.kind == "fail" and decision.details.get("from") == "created":
            reason = {"reason": command.reason}
            return happened(flow, instant(at_ms), EventKind.FAILED, FlowStatus.FAILED, reason)
        return decision

    monkeypatch.setattr(handler_module, "decide", changed)


RULES: dict[str, tuple[Planted, Touched]] = {
    "refuses more": (
        resume_needs_a_patch,
        lambda command, outcome: (
            command["kind"] == "resume"
            and outcome["verdict"] == "accepted"
            and command["state_patch"]["resumed"] < 3
        ),
    ),
    "writes another event": (
        finish_says_more,
        lambda command, outcome: (
            bool(command["kind"] == "finish" and outcome["event_ids"])
            and outcome["verdict"] == "accepted"
        ),
    ),
    "accepts more": (
        a_created_flow_may_fail,
        lambda command, outcome: (
            command["kind"] == "fail"
            and outcome["verdict"] == "rejected"
            and outcome["details"].get("from") == "created"
        ),
    ),
}


@pytest.mark.parametrize("name", RULES)
async def test_a_rule_that_was_changed_shows_in_the_commands_that_it_touches_and_no_others(
    name: str, history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, is_touched = RULES[name]
    expected = {
        place for place, command, outcome in decided(history) if is_touched(command, outcome)
    }
    plant(monkeypatch)

    findings = await check(history)

    assert len(expected) > 2
    assert touched(findings) == expected
    assert findings.touched.total() == len(expected)


async def test_a_sentence_that_was_changed_touches_outcomes_only(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "FORWARDED", "Sent on.")

    findings = await check(history)

    expected = {
        place for place, _, outcome in decided(history) if outcome["verdict"] == "forwarded"
    }
    assert touched(findings) == touched(findings, "outcome") == expected
    assert findings.first[0].fields == [
        {
            "path": "$.message",
            "recorded": "The record lay on the wrong partition and was sent to the right one.",
            "now": "Sent on.",
        }
    ]


async def test_other_words_for_what_is_no_command_are_no_difference(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = messages.refused
    reasons = {Code.MALFORMED, Code.INVALID_COMMAND, Code.UNSUPPORTED_VERSION}
    monkeypatch.setattr(
        messages,
        "refused",
        lambda code, *given: "No." if code in reasons else refused(code, *given),
    )

    findings = await check(history)

    assert findings.ok, text_of(findings)
    dead_letters = findings.records["dead_letters"]
    assert findings.not_compared == {check_module.REWORDED: 2 * dead_letters}


async def test_a_shorter_window_shows_in_the_resends_that_it_no_longer_knows(
    history: Recorded,
) -> None:
    rules = rules_of(history)
    shorter = Rules(rules.prefix, rules.partitions, 10_000, rules.timer_max_horizon_ms)
    first: dict[tuple[str, str], int] = {}
    expected = set()
    forgotten = {"forbidden", "not_owner", "idempotency_conflict"}
    for place, command, outcome in decided(history):
        at_ms = handler_time(outcome)
        key = (command["flow_id"], command["command_id"])
        resent = outcome["verdict"] == "duplicate" or outcome["code"] == "idempotency_conflict"
        if resent and at_ms - first[key] > 10_000:
            expected.add(place)
        elif (
            outcome["verdict"] in ("accepted", "rejected")
            and outcome["code"] not in forgotten
            and not outcome["dry_run"]
        ):
            first[key] = at_ms

    findings = await check(history, rules=shorter)

    assert len(expected) > 10
    assert touched(findings) == expected


def handler_time(outcome: dict[str, Any]) -> int:
    return parse_timestamp(outcome["at"])


async def test_another_way_of_evolving_shows_in_the_snapshots(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deep(state: Any, patch: Any) -> Any:
        merged = evolve_module_merge(state, patch)
        return {**merged, "planted": True} if isinstance(merged, dict) and "a" in merged else merged

    evolve_module_merge = evolve_module.merge
    monkeypatch.setattr(evolve_module, "merge", deep)

    findings = await check(history)

    flows = {
        one.flow_id for one in findings.first if one.record == "snapshot" and one.what == "changed"
    }
    newest = {
        (record.key or b"").decode(): record.value
        for partition in range(PARTITIONS)
        for record in history.of("state", partition)
    }
    expected = set()
    for flow_id, value in newest.items():
        state = value and orjson.loads(value).get("flow", {}).get("state_json")
        if isinstance(state, dict) and "a" in state:
            expected.add(flow_id)
    assert expected
    assert flows == expected
    assert {one.record for one in findings.first} == {"snapshot"}


async def test_a_copy_that_is_made_in_another_way_shows(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(topic: str, partition: int, record: Any, source: Any) -> Forward:
        return Forward(topic, partition, record._replace(value=record.value + b" "), source)

    monkeypatch.setattr(outcomes_module, "Forward", changed)

    findings = await check(history)

    assert findings.kinds == {
        ("(forwarded)", "copy", "changed"): findings.records["copies"],
    }
    assert findings.records["copies"] > 5


async def test_another_dead_letter_shows(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine = outcomes_module.dead_letter
    monkeypatch.setattr(
        outcomes_module, "dead_letter", lambda *given: quarantine(*given)._replace(value=b"gone")
    )

    findings = await check(history)

    assert {(one.record, one.what) for one in findings.first} == {("dead letter", "changed")}
    assert findings.touched.total() == findings.records["dead_letters"] > 5


async def test_a_wake_that_is_not_asked_for_any_more_shows(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged = await check(history)
    monkeypatch.setattr(handler_module.CommandHandler, "_to_be_woken", lambda *_: False)

    findings = await check(history)

    # The last ones that were asked for lie on the topic, undecided.
    undecided = unchanged.records["wakes"] - len(findings.first)
    assert {(one.kind, one.record, one.what) for one in findings.first} == {
        ("request_cancel", "wake", "missing")
    }
    assert 0 <= undecided <= PARTITIONS


async def test_a_flow_that_is_cancelled_in_the_same_transaction_needs_no_wake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = Recorded()
    about = {"controller_id": "c", "goal": "g", "requester_origin": "r"}
    recorded.send(("commands", document("create_mirrored", **about)))
    recorded.send(
        ("commands", document("set_waiting", wait=manual())),
        ("commands", document("request_cancel")),
        ("commands", document("cancel")),
        ("commands", document("finish")),
    )
    # So that each command of the transaction is looked at by itself.
    monkeypatch.setattr(messages, "refused", lambda *_: "No.")

    findings = await check(recorded)

    assert touched(findings) == {("commands", 0, 4)}
    assert set(findings.kinds) == {("finish", "outcome", "changed")}


async def test_an_exception_is_a_difference_of_its_record(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: Any, *args: Any, **more: Any) -> Decision:
        if command.kind == "prune":
            raise ZeroDivisionError("planted")
        return decide(command, *args, **more)

    monkeypatch.setattr(handler_module, "decide", fails)

    findings = await check(history)

    expected = {
        place
        for place, command, outcome in decided(history)
        if command["kind"] == "prune"
        and outcome["verdict"] in ("accepted", "rejected")
        and outcome["code"] != "idempotency_conflict"
    }
    assert touched(findings) == expected
    assert any(
        {"path": "(exception)", "now": "ZeroDivisionError('planted')"} in one.fields
        for one in findings.first
    )


async def test_an_event_that_is_recorded_in_another_way_shows_with_its_fields(
    history: Recorded,
) -> None:
    edited = history.copy()
    audit = edited.of("audit", 0)
    at = next(n for n, record in enumerate(audit) if json_of(record)["kind"] == "state_updated")
    record = audit[at]
    event = json_of(record)
    value = orjson.dumps({**event, "actor": "somebody"})
    audit[at] = type(record)(
        *(record.topic, record.partition, record.offset, record.timestamp, record.key, value),
        record.headers,
    )

    findings = await check(edited)

    changed = next(one for one in findings.first if one.record == "event")
    assert changed.fields[0] == {
        "path": "$.actor",
        "recorded": "somebody",
        "now": event["actor"],
    }
    # What follows builds on the chain as it is recorded, so nothing else differs.
    assert findings.touched.total() == 1


# Where the history begins later


def shortened(history: Recorded, share: float, *names: str) -> Recorded:
    """As retention leaves it."""
    short = history.copy()
    for name in names:
        for partition in range(history.partitions):
            records = short.of(name, partition)
            kept = records[int(len(records) * share) :]
            short.records[name, partition] = kept
            short.starts[name, partition] = kept[0].offset
    return short


@pytest.mark.parametrize(
    ("names", "share"),
    [
        (("commands",), 0.3),
        (("commands", "control"), 0.5),
        (("commands", "control", "outcomes"), 0.4),
        (("outcomes",), 0.4),
        (("deadletters",), 0.5),
    ],
)
async def test_what_retention_took_is_folded_from_the_audit(
    names: tuple[str, ...], share: float, history: Recorded
) -> None:
    short = shortened(history, share, *names)

    findings = await check(short)

    assert findings.ok, text_of(findings)
    assert 0.3 * COUNT < findings.commands.total() <= COUNT * 1.1
    if names != ("deadletters",):
        assert findings.begins[0]["with"] == "a fold of the audit"
        assert findings.commands.total() < COUNT


async def test_a_rule_shows_also_behind_a_fold(
    history: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, is_touched = RULES["refuses more"]
    whole = {place for place, command, outcome in decided(history) if is_touched(command, outcome)}
    short = shortened(history, 0.5, "commands", "control")
    plant(monkeypatch)

    findings = await check(short)

    begins = {p: findings.begins[p]["commands"] for p in range(PARTITIONS)}
    expected = {place for place in whole if place[0] == "commands" and place[2] >= begins[place[1]]}
    assert expected
    assert {place for place in touched(findings) if place[0] == "commands"} == expected
    assert touched(findings) <= whole


async def test_since_a_time_and_a_file_of_it(history: Recorded, tmp_path: Path) -> None:
    records = history.of("outcomes", 0)
    since_ms = records[len(records) // 2].timestamp
    await export(history, tmp_path / "late.gz", since_ms)

    findings, from_file = (
        await check(history, since_ms=since_ms),
        await check_file(tmp_path / "late.gz"),
    )

    assert findings.ok, text_of(findings)
    assert 0 < findings.commands.total() < COUNT * 0.7
    assert from_file.as_json() == findings.as_json()


async def test_an_audit_that_does_not_reach_back_is_said(history: Recorded) -> None:
    with pytest.raises(HistoryUnusable, match="what flows were before is unknown"):
        await check(shortened(history, 0.2, "commands", "audit"))


async def test_where_nothing_is_left_the_present_is_compared_all_the_same(
    history: Recorded,
) -> None:
    gone = history.copy()
    for name in ("commands", "control"):
        for partition in range(PARTITIONS):
            gone.records[name, partition] = []
            gone.starts[name, partition] = gone.end(name, partition)

    findings = await check(gone)

    assert findings.ok, text_of(findings)
    assert findings.commands.total() == 0
    assert findings.records["snapshots"] > 100


async def test_nothing_at_all_is_no_difference() -> None:
    findings = await check(Recorded())

    assert findings.ok
    assert findings.commands.total() == 0


async def test_a_resend_of_what_was_answered_before_is_taken_as_given() -> None:
    recorded = Recorded()
    start = document("create_mirrored", controller_id="c", goal="g", requester_origin="r")
    recorded.send(("commands", start))
    recorded.send(("commands", start))
    recorded.send(("commands", document("set_waiting", wait=manual())))
    recorded.records["commands", 0] = recorded.of("commands")[-2:]
    recorded.records["outcomes", 0] = recorded.of("outcomes")[-2:]
    recorded.starts = {("commands", 0): 1, ("outcomes", 0): recorded.of("outcomes")[0].offset}

    findings = await check(recorded)

    assert findings.ok, text_of(findings)
    assert findings.commands == {"set_waiting": 1}
    assert sum(findings.not_compared.values()) == 1


# Files


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda raw: b"no gzip", "cannot be read as a history"),
        (lambda raw: raw[: len(raw) // 2], "cannot be read as a history"),
        (lambda raw: b"", "is no history"),
        (lambda raw: compress(decompress(raw)[:-600_000]), "ends in the middle of a partition"),
        (lambda raw: compress(decompress(raw)[:-1_000]), "ends in the middle of a partition"),
        (
            lambda raw: compress(
                decompress(raw).replace(b'"taskflow_history":2', b'"taskflow_history":1')
            ),
            "run that one, or export it again",
        ),
    ],
)
async def test_a_damaged_file_is_said(
    spoil: Callable[[bytes], bytes], says: str, history: Recorded, tmp_path: Path
) -> None:
    await export(history, tmp_path / "history.gz")
    raw = (tmp_path / "history.gz").read_bytes()
    (tmp_path / "history.gz").write_bytes(spoil(raw))

    with pytest.raises(HistoryUnusable, match=says):
        await check_file(tmp_path / "history.gz")


def test_a_file_that_was_not_finished_takes_no_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError), writing(tmp_path / "history.gz") as writer:
        writer.snapshots([None])  # type: ignore[list-item]

    assert list(tmp_path.iterdir()) == []


def test_answers_are_forgotten_in_memory_and_in_the_file(history: Recorded) -> None:
    def kept_entries(ledger_max: int = LEDGER_MAX) -> list[int]:
        with open_store(ledger_max=ledger_max) as store:
            keep_all(store, history)
            store.forget(MORNING + HOUR_MS)
            return [row.at_ms for row in store.ledger()]

    assert kept_entries(ledger_max=7) == kept_entries()
    assert min(kept_entries()) >= MORNING + HOUR_MS


def keep_all(store: ReplayStore, history: Recorded) -> None:
    for row in history.owner(0).ledger.values():
        store.keep(Changes(ledger_entries=[row]))


# Golden histories

GOLDEN = Path(__file__).parents[3] / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.gz")), ids=lambda path: path.name)
def test_this_version_decides_as_the_golden_histories_have_it(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["replay", "check", str(path)])

    report = orjson.loads(capsys.readouterr().out)
    assert (code, report["differences"]) == (DONE, {}), report["first"]
    assert report["compared"]["commands"] >= 500


def test_a_difference_is_exit_code_1_and_shown_to_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = GOLDEN / "random.gz"
    monkeypatch.setattr(program, "for_people", lambda json: not json)

    assert main(["replay", "check", str(path), "--window", "1s"]) == REFUSED
    shown = capsys.readouterr()
    assert "outcome changed, taskflow.co" in shown.out
    assert "$.verdict: recorded 'duplicate', now" in shown.out
    assert "commands are decided in another way.\n" in shown.err
    assert main(["replay", "check", str(path), "--partition", "1"]) == DONE
    assert capsys.readouterr().err == "No difference.\n"


def test_processes_share_the_partitions_out(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    path = str(GOLDEN / "random.gz")
    reports = []
    for options in ([], ["--processes", "2"]):
        assert main(["replay", "check", path, "--window", "1s", *options]) == REFUSED
        reports.append(orjson.loads(capfd.readouterr().out))

    one, two = reports
    for report in reports:
        del report["seconds"]
        report["first"].sort(key=lambda found: (found["partition"], found["offset"]))
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "code", "about"),
    [
        (["check", "nowhere.gz"], WRONG_USE, "nowhere.gz is no file."),
        (["check", str(GOLDEN / "random.gz"), "--since", "1h"], WRONG_USE, "taken whole"),
        (["check", str(GOLDEN / "random.gz"), "--partition", "9"], WRONG_USE, "partition 9"),
        (["check", str(GOLDEN / "random.gz"), "--window", "x"], WRONG_USE, "--window is"),
        (["check", str(GOLDEN / "README.md")], REFUSED, "cannot be read as a history"),
        (["export", str(GOLDEN / "random.gz")], REFUSED, "is there already"),
        (["export", "no/where/history.gz"], WRONG_USE, "no/where is no directory."),
    ],
)
def test_wrong_use_and_refusals_say_why(
    arguments: list[str], code: int, about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *arguments]) == code
    assert about in capsys.readouterr().err
