"""An audit that nobody had to decide: valid FlowEvents of many flows, numbered and chained as the
processor does it, and as fast as they can be written."""

import json
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer

from processor.contract.events import CHAIN_HEADER, CHAIN_START
from processor.contract.topics import Topics
from processor.contract.values import EVENTS_PER_PARTITION, instant
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from tests.benchmarks.timers import flow_ids

OWNERS = 10_000
LARGE_OWNER = "agent:large:session:1"
LARGE_EVERY = 20
"""One flow of so many belongs to LARGE_OWNER; the others are shared out evenly."""
LATER = 2_000
"""What becomes of a flow comes when so many more were created."""
TRANSACTION_MAX = 20_000
DAY_MS = 86_400_000

WORDS = (
    *("invoice", "inbox", "import", "letter", "report", "refund", "order", "backup", "index"),
    *("survey", "contract", "ticket", "upload", "review", "payment", "shipment", "audit", "quote"),
)


class Written(NamedTuple):
    """A record of `audit`."""

    partition: int
    key: bytes
    value: bytes
    chain: bytes


@dataclass(slots=True)
class Flow:
    """What is told of a flow so far."""

    number: int
    id: str
    partition: int
    revision: int = -1
    chain: bytes = CHAIN_START


def owner_of(number: int) -> str:
    return LARGE_OWNER if number % LARGE_EVERY == 0 else f"agent:{number % OWNERS}:session:1"


@dataclass(slots=True)
class Author:
    """Tells flows one after the other; `next_ids` are by partition, and go on from call to call."""

    partitions: int
    prefix: str
    next_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.next_ids:
            self.next_ids = [p * EVENTS_PER_PARTITION + 1 for p in range(self.partitions)]

    def flows(self, first: int, count: int) -> Iterator[Written]:
        """Flows `first` and following: each is created and runs at once; a quarter is finished
        later, as many change their state, a tenth waits and a twentieth fails."""
        waiting: deque[Flow] = deque()
        for number, flow_id in enumerate(flow_ids(count, first=first), first):
            flow = Flow(number, flow_id, partition_of(flow_id.encode(), self.partitions))
            yield from self._begun(flow)
            waiting.append(flow)
            if len(waiting) > LATER:
                yield from self._later(waiting.popleft())
        for flow in waiting:
            yield from self._later(flow)

    def _begun(self, flow: Flow) -> Iterator[Written]:
        number = flow.number
        word = WORDS[number % len(WORDS)]
        created = {
            "controller_id": f"bench/{word}",
            "goal": f"settle {word} {number} of {WORDS[number // 7 % len(WORDS)]}",
            "owner_session_key": owner_of(number),
            "requester_origin": "user-1",
            "current_step": "init",
            "state_json": {"messages": 10, "processed": 0},
        }
        yield self._event(flow, "created", "created", created)
        yield self._event(flow, "started", "running", {})

    def _later(self, flow: Flow) -> Iterator[Written]:
        kind = flow.number % 20
        if kind % 4 == 0:
            yield self._event(flow, "finished", "finished", {"final_state": {"processed": 10}})
        elif kind == 1:
            yield self._event(flow, "failed", "failed", {"reason": "the file has no header"})
        elif kind in (2, 3):
            wait = {
                "kind": "external_event",
                "topic": "payments.settled",
                "correlation_id": f"c-{flow.number}",
                "timeout_at": instant(time.time_ns() // 1_000_000 + DAY_MS),
            }
            yield self._event(flow, "waiting", "waiting", {"wait": wait})
        elif kind in range(5, 12):
            patch = {"patch": {"processed": flow.number % 10}, "next_step": "reading"}
            yield self._event(flow, "state_updated", "running", patch)

    def _event(self, flow: Flow, kind: str, status: str, payload: Mapping[str, Any]) -> Written:
        event_id = self.next_ids[flow.partition]
        self.next_ids[flow.partition] += 1
        flow.revision += 1
        event = {
            "id": event_id,
            "flow_id": flow.id,
            "kind": kind,
            "payload_json": payload,
            "at": instant(time.time_ns() // 1_000_000),
            "revision": flow.revision,
            "status": status,
            "command_id": str(uuid.UUID(int=event_id)),
            "actor": owner_of(flow.number),
            "source": {
                "topic": f"{self.prefix}.commands",
                "partition": flow.partition,
                "offset": event_id % EVENTS_PER_PARTITION,
            },
            "schema_version": 1,
        }
        value = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
        flow.chain = blake2b(flow.chain + value, digest_size=16).digest()
        return Written(flow.partition, flow.id.encode(), value, flow.chain)


async def write(settings: Settings, records: Iterator[Written]) -> int:
    """Write them in transactions, as fast as Kafka takes them; how many they were."""
    topic = Topics(settings.topic_prefix).audit
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        transactional_id=f"{settings.topic_prefix}-author",
        compression_type="lz4",
        max_batch_size=900_000,
        linger_ms=5,
    )
    written, more = 0, True
    async with producer:
        while more:
            async with producer.transaction():
                taken = await _transaction(producer, topic, settings.partitions, records)
            written += taken
            more = taken == TRANSACTION_MAX
    return written


async def _transaction(
    producer: AIOKafkaProducer, topic: str, partitions: int, records: Iterator[Written]
) -> int:
    batches = [producer.create_batch() for _ in range(partitions)]
    sending, taken = [], 0
    for partition, key, value, chain in records:
        headers = [(CHAIN_HEADER, chain)]
        one = {"timestamp": None, "key": key, "value": value, "headers": headers}
        if batches[partition].append(**one) is None:
            sending.append(
                await producer.send_batch(batches[partition], topic, partition=partition)
            )
            batches[partition] = producer.create_batch()
            batches[partition].append(**one)
        taken += 1
        if taken == TRANSACTION_MAX:
            break
    for partition, batch in enumerate(batches):
        if batch.record_count():
            sending.append(await producer.send_batch(batch, topic, partition=partition))
    for sent in sending:
        await sent
    return taken
