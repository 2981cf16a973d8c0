"""A history of any length that is nowhere: each record is made when it is read.

Run as a program (`python -m tests.support.infinite_history FLOWS`) it verifies such a history and
prints how many events it had and how much memory that took, in KiB.
"""

import asyncio
import resource
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.ops.verify.ports import LogRange
from processor.ops.verify.report import Report
from processor.ops.verify.scope import Scope
from processor.ops.verify.verify import verify
from processor.testing.memory.record import Appended
from tests.support.builders import HOUR_MS, MORNING

TOPICS = Topics()
AT_ONCE = 1_000
ALLOWED = [
    "cancel",
    "fail",
    "finish",
    "record_step_observation",
    "request_cancel",
    "set_waiting",
    "update_state",
]


@dataclass(frozen=True, slots=True)
class Endless:
    """`flows` flows on one partition: all are created, and when all are, each is updated. So 3
    events and 2 commands a flow, with the longest way between the first and the last."""

    flows: int

    def flow_id(self, number: int) -> str:
        # Spread as random ones are.
        return _uuid(blake2b(b"%d" % number, digest_size=16).hexdigest())

    def at_ms(self, offset: int) -> int:
        return MORNING + offset

    def command(self, offset: int) -> dict[str, Any]:
        flow_id = self.flow_id(offset % self.flows)
        common = {"command_id": _uuid(f"{offset:032x}"), "flow_id": flow_id, "issued_by": "me"}
        if offset >= self.flows:
            return {"kind": "update_state", **common, "patch": {"updated": offset}}
        about = {"controller_id": "c", "goal": "Go on for ever", "requester_origin": "r"}
        return {"kind": "create_mirrored", **common, **about, "state_json": {"n": offset}}

    def event_ids(self, offset: int) -> list[int]:
        if offset < self.flows:
            return [2 * offset + 1, 2 * offset + 2]
        return [self.flows + offset + 1]

    def source(self, offset: int) -> dict[str, Any]:
        return {"topic": TOPICS.commands, "partition": 0, "offset": offset}

    def outcome(self, offset: int) -> dict[str, Any]:
        command, update = self.command(offset), offset >= self.flows
        return {
            **{name: command[name] for name in ("command_id", "flow_id", "kind")},
            "verdict": "accepted",
            "code": None,
            "message": "Done.",
            "revision": 2 if update else 1,
            "status": "running",
            "event_ids": self.event_ids(offset),
            "allowed": ALLOWED,
            "details": {},
            "dry_run": False,
            "command_digest": blake2b(_sorted(command), digest_size=16).hexdigest(),
            "source": self.source(offset),
            "at": instant(self.at_ms(offset)),
        }

    def events(self, offset: int) -> list[bytes]:
        command = self.command(offset)
        if offset < self.flows:
            named = ("controller_id", "goal", "requester_origin", "state_json")
            created = {name: command[name] for name in named}
            created |= {"owner_session_key": "me", "current_step": "init"}
            facts = [("created", created, 0, "created"), ("started", {}, 1, "running")]
        else:
            patch = {"patch": command["patch"], "next_step": None}
            facts = [("state_updated", patch, 2, "running")]
        return [
            orjson.dumps(
                {
                    "id": event_id,
                    "flow_id": command["flow_id"],
                    "kind": kind,
                    "payload_json": payload,
                    "at": instant(self.at_ms(offset)),
                    "revision": revision,
                    "status": status,
                    "command_id": command["command_id"],
                    "actor": "me",
                    "source": self.source(offset),
                    "schema_version": 1,
                }
            )
            for event_id, (kind, payload, revision, status) in zip(
                self.event_ids(offset), facts, strict=True
            )
        ]

    def chained(self, offset: int) -> list[tuple[bytes, bytes]]:
        """The events of a command with their chain values."""
        chain = bytes(16) if offset < self.flows else self.chained(offset - self.flows)[-1][1]
        made = []
        for value in self.events(offset):
            chain = blake2b(chain + value, digest_size=16).digest()
            made.append((value, chain))
        return made

    def snapshot(self, number: int) -> dict[str, Any]:
        create, update = self.command(number), number + self.flows
        flow = {
            "id": create["flow_id"],
            **{name: create[name] for name in ("controller_id", "goal", "requester_origin")},
            "owner_session_key": "me",
            "current_step": "init",
            "state_json": {**create["state_json"], "updated": update},
            "wait_json": None,
            "status": "running",
            "cancel_requested": False,
            "revision": 2,
            "created_at": instant(self.at_ms(number)),
            "updated_at": instant(self.at_ms(update)),
        }
        ((_, chain),) = self.chained(update)
        return {"flow": flow, "last_event_id": self.event_ids(update)[-1], "chain": chain.hex()}

    def count(self, topic: str) -> int:
        counts = {
            TOPICS.commands: 2 * self.flows,
            TOPICS.outcomes: 2 * self.flows,
            TOPICS.audit: 3 * self.flows,
            TOPICS.state: self.flows + 1,
        }
        return counts.get(topic, 0)

    def records(self, topic: str) -> Iterator[Appended]:
        def record(offset: int, key: str, value: Any, at: int, *headers: Any) -> Appended:
            raw = value if isinstance(value, bytes) else orjson.dumps(value)
            return Appended(topic, 0, offset, self.at_ms(at), key.encode(), raw, headers)

        if topic == TOPICS.state:
            for number in range(self.flows):
                yield record(number, self.flow_id(number), self.snapshot(number), number)
            cursor = {"commands": 2 * self.flows, "control": 0, "schema_version": 1}
            cursor["next_event_id"] = 3 * self.flows + 1
            cursor["offered"] = 3 * self.flows
            yield record(self.flows, "cursor/0", cursor, self.flows)
        offset = 0
        for number in range(2 * self.flows):
            key = self.flow_id(number % self.flows)
            if topic == TOPICS.commands:
                yield record(number, key, self.command(number), number)
            elif topic == TOPICS.outcomes:
                yield record(number, key, self.outcome(number), number)
            elif topic == TOPICS.audit:
                for value, chain in self.chained(number):
                    yield record(offset, key, value, number, ("taskflow-chain", chain))
                    offset += 1

    # As a log

    async def offset_range(self, topic: str) -> LogRange:
        return LogRange(0, self.count(topic), self.count(topic))

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        raise NotImplementedError("it is read from the beginning")

    async def read(
        self, topic: str, start: int, end: int
    ) -> AsyncGenerator[Sequence[Appended], None]:
        chunk: list[Appended] = []
        for record in self.records(topic) if self.count(topic) else ():
            if not start <= record.offset < end:
                continue
            chunk.append(record)
            if len(chunk) == AT_ONCE:
                yield chunk
                chunk = []
        yield chunk

    # At hand: no tables

    def read_table(self, partition: int, take: Any) -> None:
        return None

    async def verify(self) -> Report:
        @asynccontextmanager
        async def logs(partition: int) -> AsyncIterator[Endless]:
            yield self

        return await verify(Scope(TOPICS, 1, HOUR_MS, at_rest=True, grace_s=0.0), logs, [self])


def _uuid(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _sorted(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def peak_kib() -> int:
    """The most memory that this program had. What Linux tells as `ru_maxrss` begins with what the
    process had that started it, which may be a test run of any size."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    report = asyncio.run(Endless(int(sys.argv[1])).verify())
    assert report.ok, report.first
    print(report.counts["events"], peak_kib())


if __name__ == "__main__":
    main()
