"""Pruning by hand: what it asks for, what it is answered, and what it says."""

import asyncio
import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import orjson
import pytest

from processor.adapters.kafka.errors import BrokerUnreachable
from processor.cli.bulk import execute as sending
from processor.cli.bulk import selection as program
from processor.cli.common import confirm as consent
from processor.cli.common import options
from processor.cli.flow import lookup
from processor.cli.main import DONE, REFUSED, UNREACHABLE, main
from processor.cli.send.pipeline import IN_FLIGHT
from processor.client import OutcomeTimeout
from processor.contract.commands import COMMANDS, Command
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code, Outcome, Verdict
from processor.contract.values import Source, instant
from processor.ops.bulk import GONE, BulkAction, BulkTarget, order
from processor.settings import VARIABLES
from tests.support.builders import document
from tests.unit.adapters.sqlite.tables import NOON_MS, uuid


def ended(n: int, status: FlowStatus = FlowStatus.FINISHED) -> BulkTarget:
    owner, goal = "session:reports", f"Write report {n}"
    return BulkTarget(uuid(n), status, instant(NOON_MS + n), n + 3, owner, goal)


def order_for(targets: Iterable[BulkTarget], *, by: str) -> sending.BulkExecution:
    done = GONE[BulkAction.PRUNE]
    return sending.BulkExecution([*targets], order(BulkAction.PRUNE, by), done=done)


def outcome(flow_id: str, code: Code | None = None) -> Outcome:
    return Outcome(
        command_id=None,
        flow_id=flow_id,
        kind="prune",
        verdict=Verdict.ACCEPTED if code is None else Verdict.REJECTED,
        code=code,
        message="",
        revision=None,
        status=None,
        event_ids=[],
        allowed=None,
        details={},
        dry_run=False,
        command_digest=None,
        source=Source(topic="taskflow.control", partition=0, offset=0),
        at=instant(NOON_MS),
    )


class Client:
    """Answers by flow id, accepted unless told otherwise; notes what it was asked."""

    def __init__(self, scripted: Mapping[str, Code | Exception] | None = None) -> None:
        self.scripted = scripted or {}
        self.asked: list[dict[str, Any]] = []
        self.under_way = 0
        self.most_under_way = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, command: Any, *, control: bool, timeout_s: float) -> Outcome:
        assert control
        self.asked.append(command)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        scripted = self.scripted.get(command["flow_id"])
        if isinstance(scripted, Exception):
            raise scripted
        return outcome(command["flow_id"], scripted)


def no_outcome(flow_id: str) -> OutcomeTimeout:
    command: Command = COMMANDS.validate_python(document("prune", flow_id=flow_id))
    return OutcomeTimeout(command, None, "No outcome came within 30 s")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What flows were looked for; what is found are three that have ended."""
    asked: dict[str, Any] = {}
    statuses = (FlowStatus.FINISHED, FlowStatus.FAILED, FlowStatus.CANCELLED)

    async def list_ended(_: object, **wanted: Any) -> list[BulkTarget]:
        asked.update(wanted)
        return [ended(n, status) for n, status in enumerate(statuses)]

    monkeypatch.setattr(lookup, "list_ended", list_ended)
    return asked


@pytest.fixture
def given_client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    def given(scripted: Mapping[str, Code | Exception] | None = None) -> Client:
        client = Client(scripted)
        monkeypatch.setattr(sending, "FlowClient", lambda _: client)
        return client

    return given


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "somebody_to_ask", lambda: True)
    for module in (program, sending):
        monkeypatch.setattr(module, "for_people", lambda json: not json)


async def test_each_flow_is_asked_for_once_by_the_operator_and_not_all_at_once() -> None:
    client = Client()
    flow_ids = [uuid(n) for n in range(2 * IN_FLIGHT + 1)]
    pruning = order_for(map(ended, range(len(flow_ids))), by="operator:ana")

    await pruning.all(client, 1)

    assert [command["flow_id"] for command in client.asked] == flow_ids
    assert client.most_under_way == IN_FLIGHT
    assert {(c["kind"], c["issued_by"]) for c in client.asked} == {("prune", "operator:ana")}
    assert pruning.tally == {("accepted", None): len(flow_ids)}
    assert (pruning.done, pruning.left) == (True, [])


async def test_each_is_pruned_at_the_revision_that_was_seen_and_at_no_other() -> None:
    client = Client({uuid(2): Code.REVISION_MISMATCH})
    pruning = order_for([ended(1), ended(2)], by="me")

    await pruning.all(client, 1)

    revisions = {command["flow_id"]: command["expected_revision"] for command in client.asked}
    assert revisions == {uuid(1): 4, uuid(2): 5}
    assert [one.target.flow_id for one in pruning.skipped] == [uuid(2)]
    assert not pruning.done


async def test_a_flow_that_is_gone_already_is_done_and_any_other_refusal_is_not() -> None:
    gone = order_for([ended(1), ended(2)], by="me")
    await gone.all(Client({uuid(1): Code.NOT_FOUND}), 1)
    assert gone.tally == {("rejected", "not_found"): 1, ("accepted", None): 1}
    assert gone.done

    live = order_for([ended(1), ended(2)], by="me")
    await live.all(Client({uuid(1): Code.ILLEGAL_TRANSITION}), 1)
    assert live.tally == {("rejected", "illegal_transition"): 1, ("accepted", None): 1}
    assert not live.done


async def test_where_nobody_answers_no_more_is_asked_for() -> None:
    flow_ids = [uuid(n) for n in range(3 * IN_FLIGHT)]
    client = Client({flow_id: no_outcome(flow_id) for flow_id in flow_ids})
    pruning = order_for(map(ended, range(len(flow_ids))), by="me")

    await pruning.all(client, 1)

    assert len(client.asked) == len(pruning.unanswered) == IN_FLIGHT
    assert len(pruning.left) == 2 * IN_FLIGHT
    assert not pruning.done


async def test_what_ends_all_of_it_is_raised() -> None:
    with pytest.raises(BrokerUnreachable):
        await order_for([ended(1)], by="me").all(Client({uuid(1): BrokerUnreachable("Gone.")}), 1)


def test_a_dry_run_lists_and_sends_nothing(
    asked_for: dict[str, Any], given_client: Callable[..., Client], capsys: Any
) -> None:
    client = given_client()

    assert main(["prune", "--older-than", "0s", "--dry-run", "--owner", "me"]) == DONE

    captured = capsys.readouterr()
    assert [orjson.loads(line) for line in captured.out.splitlines()] == [
        {
            "flow_id": uuid(n),
            "status": status,
            "updated_at": f"2026-11-22T12:00:00.00{n}Z",
            "revision": n + 3,
            "owner": "session:reports",
            "goal": f"Write report {n}",
        }
        for n, status in enumerate(("finished", "failed", "cancelled"))
    ]
    assert captured.err == "3 flows would be pruned.\n"
    assert asked_for["owner"] == "me"
    assert client.asked == []


def test_the_age_is_counted_back_from_now(
    asked_for: dict[str, Any], given_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "now_ms", lambda: NOON_MS)
    for age, before_ms in (("0s", NOON_MS), ("30d", NOON_MS - 30 * 86_400_000), ("999999d", 0)):
        main(["prune", "--older-than", age, "--dry-run"])
        assert asked_for["before_ms"] == before_ms


def test_in_a_pipe_the_answers_are_counted_in_json_lines(
    asked_for: dict[str, Any], given_client: Callable[..., Client], capsys: Any
) -> None:
    client = given_client({uuid(1): Code.NOT_FOUND})

    assert main(["prune", "--older-than", "30d", "--yes"]) == DONE

    captured = capsys.readouterr()
    assert [orjson.loads(line) for line in captured.out.splitlines()] == [
        {"verdict": "accepted", "code": None, "flows": 2},
        {"verdict": "rejected", "code": "not_found", "flows": 1},
    ]
    assert captured.err == ""
    assert all(re.match(r"operator:.", command["issued_by"]) for command in client.asked)


@pytest.mark.parametrize(
    ("scripted", "code", "sentence"),
    [
        (Code.ILLEGAL_TRANSITION, REFUSED, ""),
        (no_outcome(uuid(2)), REFUSED, "Is a worker running?\n1 flow without an answer"),
        (BrokerUnreachable("Nobody answers."), UNREACHABLE, "Nobody answers."),
    ],
)
def test_what_is_refused_or_not_answered_has_its_exit_code(
    scripted: Code | Exception,
    code: int,
    sentence: str,
    asked_for: dict[str, Any],
    given_client: Callable[..., Client],
    capsys: Any,
) -> None:
    given_client({uuid(2): scripted})
    assert main(["prune", "--older-than", "30d", "--yes"]) == code
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("terminal", "asked_for")
@pytest.mark.parametrize(
    ("said", "code", "asked"), [("y\n", DONE, 3), ("n\n", REFUSED, 0), ("\n", REFUSED, 0)]
)
def test_on_a_terminal_it_asks_before(
    said: str,
    code: int,
    asked: int,
    given_client: Callable[..., Client],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = given_client()
    monkeypatch.setattr("sys.stdin", io.StringIO(said))

    assert main(["prune", "--older-than", "30d"]) == code

    captured = capsys.readouterr()
    assert "Prune 3 flows? This cannot be undone." in captured.err
    assert all(uuid(n) in captured.out for n in range(3))
    assert all(f"session:reports  Write report {n}" in captured.out for n in range(3))
    assert len(client.asked) == asked
    assert ("Nothing was pruned." in captured.err) is (asked == 0)
    assert ("accepted" in captured.out) is (asked > 0)


@pytest.mark.usefixtures("terminal")
def test_nothing_is_asked_where_there_is_nothing_to_prune(
    given_client: Callable[..., Client], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def list_ended(*_: object, **__: object) -> list[BulkTarget]:
        return []

    monkeypatch.setattr(lookup, "list_ended", list_ended)
    given_client()

    assert main(["prune", "--older-than", "30d"]) == DONE
    assert capsys.readouterr().err == "There is nothing to prune.\n"
