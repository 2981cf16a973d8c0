"""Looking and repairing as an operator does: the program against a real broker and a worker."""

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.producer.bulk_copy import BulkCopy
from processor.cli.repartition import copy as copying
from processor.client import FlowClient
from processor.settings import Settings
from tests.support.cli_runner import Shell, child_worker, create, send
from tests.support.load import Load
from tests.support.machine import patience


def put(settings: Settings, *records: tuple[str, bytes, bytes]) -> None:
    """Write raw records: topic without its prefix, key, value."""

    async def write() -> None:
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            for topic, key, value in records:
                full = f"{settings.topic_prefix}.{topic}"
                await producer.send_and_wait(full, value, key=key, headers=[("x", b"1")])

    asyncio.run(write())


def finish(flow_id: str) -> dict[str, Any]:
    return {"kind": "finish", "flow_id": flow_id, "issued_by": "me"}


def test_what_is_wrong_is_seen_and_a_dead_letter_goes_back(
    settings: Settings, taskflow: Shell, tmp_path: Path
) -> None:
    found = taskflow("doctor", code=1)
    assert {line["level"] for line in found if line["check"] == "topics"} == {"bad"}

    flow, other = str(uuid4()), str(uuid4())
    command = create(flow, command_id=str(uuid4()))
    broken = json.dumps(command).replace('"me"', '"mé"').encode("latin-1")
    topic = f"{settings.topic_prefix}.commands"
    unreadable, fixed, out = (tmp_path / name for name in ("still.json", "fixed.json", "out.json"))
    with child_worker(settings):
        put(settings, ("commands", flow.encode(), broken), ("commands", other.encode(), b"[]"))
        send(settings, finish(flow), finish(other))  # behind both, on each partition

        dead_letters = taskflow("deadletters", "list")
        assert [dead_letter["code"] for dead_letter in dead_letters] == ["malformed"] * 2
        place = next(
            dead_letter["letter"]
            for dead_letter in dead_letters
            if "UTF-8" in dead_letter["message"]
        )
        shown = (taskflow("deadletters", "show", place))[0]
        assert shown["faults"][0]["at"] == broken.index(b"\xe9")
        assert shown["headers"] == [["x", "1"]]
        nowhere = tmp_path / "nowhere" / "letter.json"
        taskflow("deadletters", "show", place, "--save", str(nowhere), code=2)
        assert f"{nowhere} cannot be written: No such file" in taskflow.errors
        for nothing in ("9/9", "0/999", "0/999999999999999999"):
            taskflow("deadletters", "show", nothing, code=1)
            assert f"There is no dead letter {nothing}" in taskflow.errors
            taskflow("deadletters", "redrive", nothing, "--yes", code=1)
            assert f"There is no dead letter {nothing}" in taskflow.errors
        streamed = taskflow("deadletters", "--flow", flow)
        assert [f"{line['partition']}/{line['offset']}" for line in streamed] == [place]

        unreadable.write_bytes(broken)
        taskflow(
            *("deadletters", "edit", place, "--value", str(unreadable)),
            *("--output", str(tmp_path / "still-wrong.json")),
            code=1,
        )
        assert "not UTF-8" in taskflow.errors
        fixed.write_text(json.dumps(command))
        mended = ("--value", str(fixed))
        taskflow("deadletters", "edit", place, *mended, "--output", str(out))
        assert json.loads(out.read_text()) == command

        (planned,) = taskflow("deadletters", "redrive", place, *mended, "--dry-run")
        assert (planned["to"], planned["today"]) == (topic, "would be read")
        (sent,) = taskflow("deadletters", "redrive", place, *mended, "--yes")
        assert (sent["letter"], sent["verdict"]) == (place, "accepted")

        # A second time it is known, and seen; asked for all the same, it is a resend.
        assert taskflow("deadletters", "redrive", place, *mended, "--yes") == []
        assert f"was sent back before, to {sent['to']}" in taskflow.errors
        seen = taskflow("deadletters", "list", "--redriven")
        assert {line["letter"]: line["redriven_to"] for line in seen}[place] == sent["to"]
        (again,) = taskflow("deadletters", "redrive", place, *mended, "--yes", "--again")
        assert again["verdict"] == "duplicate"

        # What the processor would still not read is counted as such, and stays.
        bad = next(line["letter"] for line in seen if line["redriven_to"] is None)
        everything = taskflow("deadletters", "redrive", "--all", "--dry-run")
        assert "0 letters would be sent back, 2 letters would stay." in taskflow.errors
        stays = {line["letter"]: line["stays"] for line in everything}
        assert "would still be malformed: at byte 0: not a JSON object" in stays[bad]
        assert taskflow("deadletters", "redrive", "--all", "--yes", code=1) == []
        assert taskflow("deadletters", "redrive", bad, "--yes", code=1) == []

        # What is sent back as it was is a dead letter again, and says of which it is.
        (back,) = taskflow("deadletters", "redrive", "--all", "--unreadable", "--yes", code=1)
        assert (back["letter"], back["verdict"]) == (bad, "quarantined")
        assert len(taskflow("deadletters", "list")) == 3

        found = taskflow("doctor", "--probe")
        # How much room this machine has is its own affair.
        assert {line["level"] for line in found if line["check"] != "disk"} == {"good"}
        assert taskflow("verify", "--at-rest")[0]["ok"]


class Killed(BaseException):
    """The program ends here, as by a signal that nobody can catch."""


def audit_of(settings: Settings, prefix: str, taskflow: Shell) -> dict[str, list[Any]]:
    """What happened to each flow, without what a copy has of its own."""
    taskflow.set(TOPIC_PREFIX=prefix)
    histories: dict[str, list[Any]] = {}
    for event in sorted(taskflow("audit"), key=lambda event: event["id"]):
        kept = {name: value for name, value in event.items() if name not in ("id", "source")}
        histories.setdefault(event["flow_id"], []).append(kept)
    return histories


def test_four_partitions_become_seven_and_nothing_is_lost(
    settings: Settings, taskflow: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = settings.model_copy(update={"partitions": 4, "state_dir": tmp_path / "old"})
    new = settings.model_copy(
        update={
            "partitions": 7,
            "state_dir": tmp_path / "new",
            "topic_prefix": f"{settings.topic_prefix}x",
            "group_id": f"{settings.topic_prefix}x",
        }
    )
    taskflow.set(PARTITIONS="4", STATE_DIR=str(old.state_dir))
    load = Load(None, old.topic_prefix, random.Random(5))
    made = [load.next() for _ in range(300)]
    first = str(uuid4())
    command = create(first, command_id=str(uuid4()), expires_at="2999-01-01T00:00:00.000Z")
    with child_worker(old):
        put(old, *made)
        send(old, command)
        outcome = resend(old, command)
        # The worker is stopped once it has decided all; then producers write on for a moment.
        until_decided(taskflow)
    assert outcome["verdict"] == "duplicate"
    late = [load.next() for _ in range(20)]
    put(old, *late)

    move = ("repartition", "--to", "7", "--prefix", new.topic_prefix)
    (plan,) = taskflow(*move, "--dry-run", code=1)
    assert plan["undecided"] == len(late)
    assert "undecided" in taskflow.errors
    (plan,) = taskflow(*move, "--carry-undecided", "--dry-run")
    assert (plan["from"], plan["to"], plan["goes_on"]) == (4, 7, False)

    # Killed amid the history, it goes on where it was.
    monkeypatch.setattr(copying, "STEPS_AT_ONCE", 50)
    with monkeypatch.context() as killed:
        killed.setattr(BulkCopy, "copy", _killed_after(11))
        with pytest.raises(Killed):
            taskflow(*move, "--carry-undecided", "--yes")
    assert taskflow(*move, "--check", code=1) == []
    other = ("repartition", "--to", "6", "--prefix", new.topic_prefix, "--carry-undecided")
    taskflow(*other, "--yes", code=1)
    assert "take --to 7 to go on with it" in taskflow.errors
    there = Shell(new, monkeypatch, taskflow.capsys)
    assert {line["what"] for line in there("topics", "check", code=1)} == {"message.timestamp.type"}
    # A producer that was not paused: nothing is opened, and what it wrote goes along next time.
    taskflow = Shell(old, monkeypatch, taskflow.capsys)
    with monkeypatch.context() as unpaused:
        unpaused.setattr(copying.TopicCopy, "run", _while_somebody_writes(old, late, load))
        taskflow(*move, "--carry-undecided", "--yes", code=1)
        assert "The old side went on meanwhile" in taskflow.errors
    _, result = taskflow(*move, "--carry-undecided", "--yes")
    assert (result["differences"], result["flows"] > 10) == (0, True)
    (again,) = taskflow(*move, "--carry-undecided", "--yes")  # harmless: it compares
    assert again == result

    assert audit_of(old, new.topic_prefix, taskflow) == audit_of(old, old.topic_prefix, taskflow)
    there = Shell(new, monkeypatch, taskflow.capsys)
    assert there("topics", "check") == []
    assert there("verify")[0]["ok"]
    with child_worker(new):
        same = resend(new, command)
        assert same["verdict"] == "duplicate"
        assert (same["at"] > outcome["at"], same["revision"]) == (True, outcome["revision"])
        (event,) = [event for event in there("audit") if event["flow_id"] == first]
        assert same["event_ids"] == [event["id"]]
        put(new, *(load.next() for _ in range(50)))
        until_decided(there)
        report = there("verify", "--at-rest")[0]
    assert report["ok"], report
    # Commands that nobody had decided were decided there, each once.
    decided = {line["command_id"] for line in there("outcomes")}
    assert {json.loads(value)["command_id"] for _, _, value in late if b"command_id" in value} <= (
        decided
    )


def _killed_after(count: int) -> Any:
    copy, left = BulkCopy.copy, [count]

    async def copy_or_die(self: BulkCopy, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        await copy(self, *arguments)

    return copy_or_die


def _while_somebody_writes(settings: Settings, late: list[Any], load: Load) -> Any:
    copy_topics = copying.TopicCopy.run

    async def copy_late(self: Any) -> None:
        await copy_topics(self)
        late.append(load.next())
        topic, key, value = late[-1]
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            await producer.send_and_wait(f"{settings.topic_prefix}.{topic}", value, key=key)

    return copy_late


def resend(settings: Settings, command: dict[str, Any]) -> dict[str, Any]:
    async def once() -> dict[str, Any]:
        async with FlowClient(settings) as client:
            return (await client.send(command)).model_dump(mode="json")

    return asyncio.run(once())


def until_decided(taskflow: Shell) -> None:
    deadline = time.monotonic() + patience(60)
    while any("offsets undecided" in line["what"] for line in taskflow("doctor", code=None)):
        assert time.monotonic() < deadline
