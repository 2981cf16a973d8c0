"""Random histories: commands of every kind and every kind of trouble, decided in transactions of
any size, with the wakes that the processor sends to itself."""

import argparse
import asyncio
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from processor.contract.values import instant
from processor.domain.transitions import TERMINAL, Authority, allowed
from processor.engine.partitioner import partition_of
from processor.ops.replay.check import replay
from processor.ops.replay.copies import Copies
from processor.ops.replay.differences import Findings
from processor.ops.replay.file_reader import reading
from processor.ops.replay.file_writer import writing
from processor.ops.replay.live import LivePartition
from processor.ops.replay.recorded_history import Head, Rules
from processor.ops.replay.store import FLOWS_BYTES, LEDGER_MAX, open_store
from processor.testing.memory.record import Appended
from tests.support.builders import DAY_MS, MINUTE_MS, TIMER
from tests.support.recorded_deployment import Recorded

OWNERS = ("agent:kate:session:1", "agent:joe:session:2")
RUBBISH = (b"\xff\xfe", b"", b"[]", b'{"kind":"dance"}', b'{"n":NaN}', b'{"schema_version":2}')
ALIVE_MAX = 200
KINDS = (
    *("update_state",) * 8,
    *("start_running", "set_waiting", "record_step_observation") * 4,
    *("resume", "resume_external", "wake") * 3,
    *("finish", "fail", "request_cancel", "cancel", "prune"),
)


class _Sender:
    """Draws commands for some flows at a time."""

    def __init__(self, rng: random.Random, recorded: Recorded) -> None:
        self._rng = rng
        self._recorded = recorded
        self._alive: list[tuple[str, str]] = []
        self._sent: list[tuple[str, dict[str, Any]]] = []

    def some(self, count: int) -> Iterator[tuple[str, Any, int | None]]:
        """Topic, body, and the partition if it is not its key's."""
        for _ in range(count):
            chance = self._rng.random()
            if chance < 0.01:
                at = self._rng.randrange(self._recorded.partitions)
                yield "commands", self._rng.choice(RUBBISH), at
            elif chance < 0.05 and self._sent:
                name, body = self._rng.choice(self._sent[-500:])
                if self._rng.random() < 0.2:
                    body = {**body, "issued_by": "somebody else"}
                yield name, body, None
            else:
                name, body = self._command()
                self._sent.append((name, body))
                wrong = self._rng.randrange(self._recorded.partitions)
                yield name, body, wrong if self._rng.random() < 0.01 else None
        del self._sent[:-500]

    def _id(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def _command(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        if len(self._alive) < 3 or rng.random() < 0.1:
            kind = rng.choice(("create_managed", "create_mirrored"))
            flow_id, owner = self._id(), rng.choice(OWNERS)
            self._alive.append((flow_id, owner))
            if len(self._alive) > ALIVE_MAX:
                self._alive.pop(rng.randrange(ALIVE_MAX))
        else:
            flow_id, owner = rng.choice(self._alive)
            kind = rng.choice(self._fitting(flow_id) if rng.random() < 0.8 else KINDS)
        body: dict[str, Any] = {
            "kind": kind,
            "command_id": self._id(),
            "flow_id": flow_id,
            "issued_by": "stranger" if rng.random() < 0.02 else owner,
            **self._own_fields(kind),
        }
        if rng.random() < 0.05:
            body["expected_revision"] = rng.randrange(5)
        if rng.random() < 0.03:
            body["expires_at"] = instant(self._recorded.now + rng.choice((-1, 1)) * MINUTE_MS)
        if rng.random() < 0.03:
            body["dry_run"] = True
        operator = kind in ("wake", "prune") or rng.random() < 0.05
        return "control" if operator else "commands", body

    def _fitting(self, flow_id: str) -> Sequence[str]:
        """What the flow takes as it stands."""
        at = partition_of(flow_id.encode(), self._recorded.partitions)
        row = self._recorded.owner(at).flows.get(flow_id)
        if row is None:
            return KINDS
        if row.flow.status in TERMINAL and self._rng.random() < 0.5:
            self._alive = [one for one in self._alive if one[0] != flow_id]
        fitting = allowed(row.flow, Authority.OPERATOR)
        return [kind for kind in KINDS if kind in fitting]

    def _own_fields(self, kind: str) -> dict[str, Any]:
        rng, now = self._rng, self._recorded.now
        match kind:
            case "create_managed" | "create_mirrored":
                about = {"controller_id": "load", "goal": "Endure", "requester_origin": "tests"}
                return {**about, "state_json": {"é": 0, "tiny": 1e-7}}
            case "set_waiting":
                return {"wait": self._wait(now)}
            case "resume_external":
                return {"topic": "t", "correlation_id": "c", "payload": {"n": rng.random()}}
            case "resume":
                return {"state_patch": {"resumed": rng.randrange(9)}}
            case "finish":
                return {"final_state": {"done": True}} if rng.random() < 0.5 else {}
            case "fail":
                return {"reason": "why not"}
            case "update_state":
                patch: Any = {rng.choice("abc"): rng.choice((1, 1.5, "é", None, [1, {"x": 2}]))}
                return {"patch": patch, "next_step": rng.choice((None, "s1", "s2"))}
            case "record_step_observation":
                status = rng.choice(("pending", "running", "succeeded"))
                run = f"run-{rng.randrange(3)}"
                return {"run_id": run, "task": "t", "status": status, "result_json": {"n": 1}}
        return {}

    def _wait(self, now: int) -> dict[str, Any]:
        rng = self._rng
        soon = instant(now + rng.choice((-1, 1, 1, 1, 40 * 24 * 60)) * MINUTE_MS)
        return rng.choice(
            (
                {"kind": "manual"},
                {"kind": "timer", "at": soon},
                {"kind": "external_event", "topic": "t", "correlation_id": "c"},
                {"kind": "manual", "timeout_at": soon},
            )
        )


def random_history(
    count: int, *, seed: int = 0, partitions: int = 2, transaction_max: int = 20
) -> Recorded:
    """At least `count` commands, decided, in transactions of up to `transaction_max`."""
    rng = random.Random(seed)
    recorded = Recorded(partitions=partitions, now=1_780_000_000_000)
    sender = _Sender(rng, recorded)
    due: dict[int, list[Appended]] = {}
    sent = 0
    while sent < count:
        recorded.now += rng.choice((10, 1_000, 1_000, 2 * MINUTE_MS))
        if rng.random() < 0.001:
            recorded.now += DAY_MS
        batches, due = due, {}
        for name, body, partition in sender.some(rng.randint(1, transaction_max) * partitions):
            _append(recorded, batches, name, body, partition)
        for partition, batch in batches.items():
            written = recorded.commit(partition, batch)
            sent += len(batch)
            # They lie there, and are decided next; the last of them nobody has decided.
            for flow_id, _ in written.wakes:
                _append(recorded, due, "control", wake(rng, flow_id), None)
            for topic, home, copied, _ in written.forwards:
                name = topic.rpartition(".")[2]
                headers = tuple(copied.headers)
                copy = recorded.append(name, home, copied.key, copied.value, headers)
                due.setdefault(home, []).append(copy)
    return recorded


def wake(rng: random.Random, flow_id: str) -> dict[str, Any]:
    command_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return {"kind": "wake", "command_id": command_id, "flow_id": flow_id, "issued_by": TIMER}


def _append(
    recorded: Recorded,
    batches: dict[int, list[Appended]],
    name: str,
    body: Any,
    partition: int | None,
) -> None:
    key, value = b"k", body
    if isinstance(body, dict):
        key, value = str(body["flow_id"]).encode(), orjson.dumps(body)
    at = partition_of(key, recorded.partitions) if partition is None else partition
    headers = (("traceparent", b"00-1"), ("mine", b""))
    batches.setdefault(at, []).append(recorded.append(name, at, key, value, headers))


def rules_of(recorded: Recorded) -> Rules:
    return Rules("taskflow", recorded.partitions, recorded.window_ms, 30 * DAY_MS)


async def check(
    recorded: Recorded,
    *,
    rules: Rules | None = None,
    since_ms: int | None = None,
    flows_bytes: int = FLOWS_BYTES,
    ledger_max: int = LEDGER_MAX,
) -> Findings:
    """A replay of all partitions, as they stand on the topics."""
    rules = rules or rules_of(recorded)
    findings, copies = Findings(), Copies()
    for partition in range(recorded.partitions):
        async with recorded.logs(partition) as log:
            with open_store(flows_bytes=flows_bytes, ledger_max=ledger_max) as store:
                live = LivePartition(log, rules, partition, since_ms=since_ms)
                await replay(live, rules, partition, store, findings, copies)
    copies.compare(findings)
    return findings


async def check_file(path: Path) -> Findings:
    """A replay of a history in a file."""
    findings, copies = Findings(), Copies()
    with reading(path) as history:
        rules = history.head().rules
        for part in history.partitions(rules, lambda _: True):
            with open_store() as store:
                await replay(part, rules, part.partition, store, findings, copies)
    copies.compare(findings)
    return findings


async def export(recorded: Recorded, path: Path, since_ms: int | None = None) -> int:
    """Write a history to a file, as `taskflow replay export` does; how many commands it holds."""
    rules, commands = rules_of(recorded), 0
    with writing(path) as writer:
        writer.head(Head("0", instant(recorded.now), rules, [*range(recorded.partitions)]))
        for partition in range(recorded.partitions):
            async with recorded.logs(partition) as log:
                with open_store() as store:
                    live = LivePartition(log, rules, partition, since_ms=since_ms)
                    writer.begin(partition, await live.begin(store), store)
                    async for done in live.decided():
                        writer.transaction(done)
                        commands += len(done)
                    async for snapshots in live.snapshots():
                        writer.snapshots(snapshots)
                    writer.end(partition, live.waking())
    return commands


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a random history to a file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--commands", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--transaction-max", type=int, default=20)
    chosen = parser.parse_args()
    made = random_history(
        chosen.commands,
        seed=chosen.seed,
        partitions=chosen.partitions,
        transaction_max=chosen.transaction_max,
    )
    print(f"{asyncio.run(export(made, chosen.file)):,} commands in {chosen.file}")
