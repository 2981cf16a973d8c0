"""One order for many flows, or steps, by an operator, with a real broker and a worker."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from processor.cli.bulk import execute as sending
from processor.client import FlowClient
from processor.settings import Settings
from tests.support.cli_runner import Shell, child_worker, create, send


def test_no_flow_is_changed_behind_the_back_of_who_looked(
    settings: Settings, taskflow: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flows = [str(uuid4()) for _ in range(40)]
    moved = set(flows[::5])

    def update(flow: str, n: int) -> dict[str, Any]:
        return {"kind": "update_state", "flow_id": flow, "issued_by": "me", "patch": {"n": n}}

    class Raced(FlowClient):
        """A producer changes some of the flows between the preview and the change."""

        async def __aenter__(self) -> "Raced":
            await super().__aenter__()
            await asyncio.gather(*(self.send(update(flow, 2)) for flow in moved))
            return self

    with child_worker(settings):
        send(settings, *(create(flow) for flow in flows), *(update(f, 1) for f in flows))
        which = ("cancel", "--owner", "me", "--where", "state.n >= 1")

        *seen, summary = taskflow("bulk", *which, "--dry-run")
        assert {line["flow_id"]: line["revision"] for line in seen} == dict.fromkeys(flows, 1)
        assert summary["flows"] == len(flows)

        with monkeypatch.context() as raced:
            raced.setattr(sending, "FlowClient", Raced)
            output = taskflow("bulk", *which, "--digest", summary["digest"], code=1)

        skipped = {line["flow_id"]: line for line in output if "flow_id" in line}
        assert skipped.keys() == moved
        for line in skipped.values():
            assert (line["code"], line["expected_revision"]) == ("revision_mismatch", 1)
        assert {(c["verdict"], c["flows"]) for c in output if "flows" in c} == {
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
            counts = db.execute("SELECT status, count(*) FROM flow GROUP BY 1").fetchall()
            by_status: dict[str, int] = dict(counts)
            assert by_status == {
                "cancelled": len(flows) - len(moved),
                "created": len(moved),
            }
            events = [json.loads(doc) for (doc,) in db.execute("SELECT doc FROM event ORDER BY id")]
            assert sorted(taskflow("audit"), key=lambda event: event["id"]) == events
            newest = "SELECT max(e.id) = f.last_event_id AND e.chain = f.chain FROM flow f"
            rows = db.execute(f"{newest} JOIN event e ON e.flow_id = f.id GROUP BY f.id").fetchall()
            assert rows == [(1,)] * len(flows)
            cut = db.execute("SELECT topic, partition, first, next FROM cut").fetchall()
            assert len(cut) == 2 * settings.partitions
            assert all(first == 0 < following for _, _, first, following in cut)

        # What was shown then is not what is meant now.
        assert taskflow("bulk", *which, "--digest", summary["digest"], code=1) == []
        assert "Nothing was done" in taskflow.errors
        assert taskflow("bulk", "fail", "--all", "--reason", "x", "--yes") == []  # none runs
        (counted,) = taskflow("bulk", *which, "--yes")
        assert (counted["verdict"], counted["flows"]) == ("accepted", len(moved))
        (pruned,) = taskflow("bulk", "prune", "--all", "--yes")
        assert (pruned["verdict"], pruned["flows"]) == ("accepted", len(flows))
        assert taskflow("bulk", "prune", "--all", "--yes") == []


def test_steps_that_failed_alike_are_tried_again_and_those_of_a_lost_holder_cancelled(
    settings: Settings, taskflow: Shell, tmp_path: Path
) -> None:
    flows = [str(uuid4()) for _ in range(6)]
    ended = flows[5]

    def of(flow: str, run_id: str, kind: str, **fields: Any) -> dict[str, Any]:
        who = {} if kind == "schedule_step" else {"issued_by": "bank:one"}
        usual = {"kind": kind, "flow_id": flow, "issued_by": "me", "run_id": run_id}
        return {**usual, **who, **fields}

    def scheduled(flow: str, run_id: str, task: str) -> list[dict[str, Any]]:
        pay = {"task": task, "input_json": {"amount": 7}, "max_attempts": 1}
        return [of(flow, run_id, "schedule_step", **pay), of(flow, run_id, "start_step")]

    def failed(flow: str, run_id: str, reason: str) -> list[dict[str, Any]]:
        lapse = {"attempt": 1, "reason": reason}
        return [*scheduled(flow, run_id, "charge"), of(flow, run_id, "fail_step", **lapse)]

    def statuses() -> dict[tuple[str, str], str]:
        return {(s["flow_id"], s["run_id"]): s["status"] for s in taskflow("step", "list")}

    with child_worker(settings):
        send(settings, *(create(flow) for flow in flows))
        for flow in (*flows[:4], ended):
            send(settings, *failed(flow, "away", "No route to host"))
        send(settings, *failed(flows[4], "poor", "the account is empty"))
        send(settings, *(one for flow in flows[:3] for one in scheduled(flow, "mail", "post")))
        send(settings, {"kind": "cancel", "flow_id": ended, "issued_by": "me"})
        which = ("retry_step", "--task", "charge", "--failure", "no ROUTE", "--attempts", "2")

        *seen, summary = taskflow("bulk", *which, "--dry-run")
        assert {line["flow_id"] for line in seen} == set(flows[:4])  # none of what has ended
        assert (summary["steps"], {line["run_id"] for line in seen}) == (4, {"away"})
        # Somebody is faster: what was shown is not what is meant any more.
        mine = {"issued_by": "me"}
        send(settings, of(flows[0], "away", "retry_step", **mine))
        assert taskflow("bulk", *which, "--digest", summary["digest"], code=1) == []
        assert "steps came, went or changed" in taskflow.errors

        (counted,) = taskflow("bulk", *which, "--yes")
        assert (counted["verdict"], counted["steps"]) == ("accepted", 3)
        assert taskflow("bulk", *which, "--yes") == []
        assert "No steps match." in taskflow.errors
        found = statuses()
        assert {found[flow, "away"] for flow in flows[:4]} == {"pending"}
        assert (found[flows[4], "poor"], found[ended, "away"]) == ("failed", "failed")

        lost = ("cancel_step", "--holder", "bank:one", "--task", "post")
        where = ("--where", f"id != {flows[0]}")
        (counted,) = taskflow("bulk", *lost, *where, "--yes")
        assert (counted["verdict"], counted["steps"]) == ("accepted", 2)
        found = statuses()
        assert [found[flow, "mail"] for flow in flows[:3]] == ["running", *["cancelled"] * 2]
        by = [e["actor"] for e in taskflow("audit") if e["kind"] == "step_cancelled"]
        assert len(by) == 2
        assert all(actor.startswith("operator:") for actor in by)
        assert taskflow("verify", "--at-rest")[0]["ok"]

        file = tmp_path / "steps.db"
        assert taskflow("export", str(file))[0]["steps"] == 9
        with closing(sqlite3.connect(file)) as db:
            rows = db.execute(
                "SELECT run_id, input_json, attempt, max_attempts, child_session_key,"
                " due_at IS NULL, last_failure ->> 'reason' FROM step"
                " WHERE flow_id IN (?, ?, ?)",
                (flows[0], flows[4], ended),
            ).fetchall()
        assert set(rows) == {
            ("away", '{"amount":7}', 1, 1, "bank:one", 1, "No route to host"),
            ("poor", '{"amount":7}', 1, 1, "bank:one", 1, "the account is empty"),
            ("away", '{"amount":7}', 1, 2, None, 0, "No route to host"),
            ("mail", '{"amount":7}', 1, 1, "bank:one", 0, None),
        }
