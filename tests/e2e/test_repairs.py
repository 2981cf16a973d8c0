"""Looking and repairing as an operator does: the program against a real broker and a worker."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from processor.broker import EmbeddedBroker
from processor.client import FlowClient
from processor.program import sending
from processor.settings import Settings
from tests.support.shell import Shell, worker_beside

PARTITIONS = 2


@pytest.fixture
def settings(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> Settings:
    return Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        state_dir=tmp_path / "state",
        http=None,
    )


@pytest.fixture
def taskflow(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    return Shell(settings, monkeypatch, capsys)


def put(settings: Settings, *records: tuple[str, bytes, bytes]) -> None:
    """Write raw records: topic without its prefix, key, value."""

    async def write() -> None:
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            for topic, key, value in records:
                full = f"{settings.topic_prefix}.{topic}"
                await producer.send_and_wait(full, value, key=key, headers=[("x", b"1")])

    asyncio.run(write())


def send(settings: Settings, *commands: dict[str, Any]) -> None:
    """Each answered before the flow's next."""

    async def of(client: FlowClient, flow_id: str) -> None:
        for command in commands:
            if command["flow_id"] == flow_id:
                await client.send(command)

    async def all_of_them() -> None:
        async with FlowClient(settings) as client:
            flows = {command["flow_id"] for command in commands}
            await asyncio.gather(*(of(client, flow) for flow in flows))

    asyncio.run(all_of_them())


def create(flow_id: str, **fields: Any) -> dict[str, Any]:
    about = {"controller_id": "tests", "goal": "Be repaired", "requester_origin": "pytest"}
    command = {"kind": "create_managed", "flow_id": flow_id, "issued_by": "me", **about}
    return command | fields


def finish(flow_id: str) -> dict[str, Any]:
    return {"kind": "finish", "flow_id": flow_id, "issued_by": "me"}


def test_what_is_wrong_is_seen_and_a_dead_letter_goes_back(
    settings: Settings, taskflow: Shell, tmp_path: Path
):
    found = taskflow("doctor", code=1)
    assert {line["level"] for line in found if line["check"] == "topics"} == {"bad"}

    flow, other = str(uuid4()), str(uuid4())
    command = create(flow, command_id=str(uuid4()))
    broken = json.dumps(command).replace('"me"', '"mé"').encode("latin-1")
    topic = f"{settings.topic_prefix}.commands"
    still, fixed, out = (tmp_path / name for name in ("still.json", "fixed.json", "out.json"))
    with worker_beside(settings):
        put(settings, ("commands", flow.encode(), broken), ("commands", other.encode(), b"[]"))
        send(settings, finish(flow), finish(other))  # behind both, on each partition

        letters = taskflow("deadletters", "list")
        assert [letter["code"] for letter in letters] == ["malformed"] * 2
        place = next(letter["letter"] for letter in letters if "UTF-8" in letter["message"])
        shown = (taskflow("deadletters", "show", place))[0]
        assert shown["faults"][0]["at"] == broken.index(b"\xe9")
        assert shown["headers"] == [["x", "1"]]
        streamed = taskflow("deadletters", "--flow", flow)
        assert [f"{line['partition']}/{line['offset']}" for line in streamed] == [place]

        still.write_bytes(broken)
        taskflow("deadletters", "edit", place, "--value", str(still), code=1)
        assert "not UTF-8" in taskflow.told
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
        assert f"was sent back before, to {sent['to']}" in taskflow.told
        seen = taskflow("deadletters", "list", "--redriven")
        assert {line["letter"]: line["redriven_to"] for line in seen}[place] == sent["to"]
        (again,) = taskflow("deadletters", "redrive", place, *mended, "--yes", "--again")
        assert again["verdict"] == "duplicate"

        # What is sent back as it was is a dead letter again, and says of which it is.
        bad = next(line["letter"] for line in seen if line["redriven_to"] is None)
        (back,) = taskflow("deadletters", "redrive", "--all", "--yes", code=1)
        assert (back["letter"], back["verdict"]) == (bad, "quarantined")
        assert len(taskflow("deadletters", "list")) == 3

        found = taskflow("doctor", "--probe")
        assert {line["level"] for line in found} == {"good"}
        assert taskflow("verify", "--at-rest")[0]["ok"]


def test_no_flow_is_changed_behind_the_back_of_who_looked(
    settings: Settings, taskflow: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    flows = [str(uuid4()) for _ in range(40)]
    moved = set(flows[::5])

    def update(flow: str, n: int) -> dict[str, Any]:
        return {"kind": "update_state", "flow_id": flow, "issued_by": "me", "patch": {"n": n}}

    class Raced(FlowClient):
        """A producer changes some of the flows between the look and the deed."""

        async def __aenter__(self) -> "Raced":
            await super().__aenter__()
            await asyncio.gather(*(self.send(update(flow, 2)) for flow in moved))
            return self

    with worker_beside(settings):
        send(settings, *(create(flow) for flow in flows), *(update(f, 1) for f in flows))
        which = ("cancel", "--owner", "me", "--where", "state.n >= 1")

        *seen, summary = taskflow("bulk", *which, "--dry-run")
        assert {line["flow_id"]: line["revision"] for line in seen} == dict.fromkeys(flows, 1)
        assert summary["flows"] == len(flows)

        with monkeypatch.context() as raced:
            raced.setattr(sending, "FlowClient", Raced)
            told = taskflow("bulk", *which, "--digest", summary["digest"], code=1)

        skipped = {line["flow_id"]: line for line in told if "flow_id" in line}
        assert skipped.keys() == moved
        for line in skipped.values():
            assert (line["code"], line["expected_revision"]) == ("revision_mismatch", 1)
        assert {(c["verdict"], c["flows"]) for c in told if "flows" in c} == {
            ("accepted", len(flows) - len(moved)),
            ("rejected", len(moved)),
        }
        ended = {line["flow_id"]: line for line in taskflow("audit") if line["kind"] == "cancelled"}
        assert ended.keys() == set(flows) - moved
        assert {line["revision"] for line in ended.values()} == {2}

        file = tmp_path / "flows.db"
        (made,) = taskflow("export", str(file))
        assert (made["flows"], made["events"]) == (len(flows), 40 + 40 + 40)
        assert taskflow("export", str(file), code=2) == []
        with closing(sqlite3.connect(file)) as db:
            told = db.execute("SELECT status, count(*) FROM flow GROUP BY 1").fetchall()
            assert dict(told) == {"cancelled": len(flows) - len(moved), "created": len(moved)}
            events = [json.loads(doc) for (doc,) in db.execute("SELECT doc FROM event ORDER BY id")]
            assert sorted(taskflow("audit"), key=lambda event: event["id"]) == events
            newest = "SELECT max(e.id) = f.last_event_id AND e.chain = f.chain FROM flow f"
            rows = db.execute(f"{newest} JOIN event e ON e.flow_id = f.id GROUP BY f.id").fetchall()
            assert rows == [(1,)] * len(flows)
            cut = db.execute("SELECT topic, partition, first, next FROM cut").fetchall()
            assert len(cut) == 2 * PARTITIONS
            assert all(first == 0 < following for _, _, first, following in cut)

        # What was shown then is not what is meant now.
        assert taskflow("bulk", *which, "--digest", summary["digest"], code=1) == []
        assert "Nothing was done" in taskflow.told
        assert taskflow("bulk", "fail", "--all", "--reason", "x", "--yes") == []  # none runs
        (counted,) = taskflow("bulk", *which, "--yes")
        assert (counted["verdict"], counted["flows"]) == ("accepted", len(moved))
        (pruned,) = taskflow("bulk", "prune", "--all", "--yes")
        assert (pruned["verdict"], pruned["flows"]) == ("accepted", len(flows))
        assert taskflow("bulk", "prune", "--all", "--yes") == []
