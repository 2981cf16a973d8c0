"""Send dead letters back: what keeps one from going, how it is written, and its outcome."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from processor.client.errors import CommandNotSent, SendUncertain
from processor.client.ports import Connection, Reader
from processor.contract.rights import Operation
from processor.contract.topics import Topics
from processor.ops.deadletters import (
    DeadLetterRecord,
    RedriveRecord,
    Spot,
    dead_letter_of,
    partition_for,
)
from processor.ops.diagnose import Diagnosis, diagnose

POLL_S: Final = 0.2
READ_TIMEOUT_S: Final = 10.0

Place = tuple[str, int, int]
"""A record's topic, partition and offset."""


class Plan(NamedTuple):
    """What goes back instead of a letter's own key and value."""

    key: bytes | None
    value: bytes | None

    @classmethod
    def editing(cls, dead_letter: DeadLetterRecord, value: bytes) -> "Plan":
        """`value` goes back, under the key of the flow that it names."""
        try:
            flow_id = orjson.loads(value)["flow_id"]
        except (ValueError, TypeError, LookupError):
            flow_id = None
        return cls(flow_id.encode() if isinstance(flow_id, str) else dead_letter.key, value)


AS_IT_IS: Final = Plan(None, None)


class Redriven(NamedTuple):
    """What became of a record: `place`: where it was written; `outcome` as JSON; `problem`: why it
    was not written."""

    place: Place | None
    outcome: dict[str, Any] | None
    problem: str | None = None


def diagnosis_of(dead_letter: DeadLetterRecord, plan: Plan) -> Diagnosis:
    """What the processor would say today of what goes back."""
    return dead_letter.diagnosis if plan.value is None else diagnose(plan.key, plan.value)


def why_not(dead_letter: DeadLetterRecord, plan: Plan, *, unreadable: bool) -> str | None:
    """Why a letter cannot go back, or should not; None if it may."""
    if dead_letter.source_topic is None or (plan.value is None and dead_letter.sendable):
        return dead_letter.sendable
    if unreadable and plan.value is None:
        return None
    found = diagnosis_of(dead_letter, plan)
    return None if found.code is None else f"would still be {found.code}: {faults_text(found)}"


def faults_text(found: Diagnosis) -> str:
    """All that is wrong with a value, on one line."""
    return "; ".join(fault_text(fault.at, fault.problem, fault.path) for fault in found.faults)


def fault_text(at: int | None, problem: str, path: str | None) -> str:
    """What is wrong with a value, and where in it."""
    where = "" if at is None else f"at byte {at}: "
    return f"{where}{f'{path}: ' if path else ''}{problem}"


async def dead_letter_at(
    connection: Connection, topics: Topics, spot: Spot
) -> DeadLetterRecord | None:
    """Read one dead letter; None if there is none at that place. Raises BrokerUnreachable."""
    topic = topics.dead_letters
    if spot.partition >= (await connection.count_partitions([topic]))[topic]:
        return None
    reader = connection.reader(topic)
    try:
        ends = await reader.open([spot.partition], "beginning")
        if not reader.positions[spot.partition] <= spot.offset < ends[spot.partition]:
            return None
        await reader.open([spot.partition], {spot.partition: spot.offset})
        async with asyncio.timeout(READ_TIMEOUT_S):
            while reader.positions[spot.partition] <= spot.offset:
                for record in await reader.poll(wait_s=POLL_S):
                    if record.offset == spot.offset:
                        return dead_letter_of(record)
    finally:
        await reader.close()
    return None  # a marker of a transaction


async def send_back(
    connection: Connection,
    topics: Topics,
    records: Sequence[RedriveRecord],
    *,
    timeout_s: float,
    written: Callable[[], None] = lambda: None,
) -> list[Redriven]:
    """Write `records`, and await their outcomes for `timeout_s`; one result for each, in order.

    `written` is called for each record that all replicas have. Raises BrokerUnreachable.
    """
    sources = {topics.commands, topics.control}
    counts = await connection.count_partitions([topics.outcomes])
    counts |= await connection.count_partitions(
        sources & {record.topic for record in records}, Operation.WRITE
    )
    outcomes = connection.reader(topics.outcomes)
    await outcomes.open(range(counts[topics.outcomes]), "end")
    producer = connection.producer()
    places: list[Place | None] = []
    problems: list[str | None] = []
    try:
        await producer.start()
        for record in records:
            place, problem = None, f"came from {record.topic}, which is not a topic of commands."
            if record.topic in sources:
                try:
                    acknowledged = await producer.send(
                        record.topic,
                        record.key,
                        record.value,
                        record.headers,
                        partition=partition_for(record, counts[record.topic]),
                        handed_over=lambda: None,
                    )
                except CommandNotSent as error:
                    problem = str(error)
                except SendUncertain as error:
                    problem = f"{error} An earlier copy may be on {record.topic}."
                else:
                    place = (record.topic, acknowledged.partition, acknowledged.offset)
                    written()
            places.append(place)
            problems.append(None if place else problem)
        found = await _outcomes_at(outcomes, {p for p in places if p is not None}, timeout_s)
    finally:
        await outcomes.close()
        await producer.close()
    return [
        Redriven(place, None if place is None else found.get(place), problem)
        for place, problem in zip(places, problems, strict=True)
    ]


async def _outcomes_at(
    outcomes: Reader, places: set[Place], timeout_s: float
) -> dict[Place, dict[str, Any]]:
    found: dict[Place, dict[str, Any]] = {}
    deadline = time.monotonic() + timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            while places - found.keys() and time.monotonic() < deadline:
                for record in await outcomes.poll(wait_s=POLL_S):
                    outcome = orjson.loads(record.value or b"")
                    source = outcome["source"]
                    place = source["topic"], source["partition"], source["offset"]
                    if place in places:
                        found[place] = outcome
    except TimeoutError:
        pass
    return found
