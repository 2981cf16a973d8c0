"""Input of every bad kind: one quarantined outcome and one dead letter each, and it goes on."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.ops.verify.contract import home_of
from processor.settings import Settings
from tests.support.machine import patience, stretched
from tests.support.malformed_batches import bomb, with_other_bytes
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess, workers
from tests.support.topics import set_compression

PARTITIONS = 2
KIB = 1024
FORGED = ("taskflow-code", "taskflow-source-offset", "taskflow-digest")
LIMIT = 512 * KIB
OUTCOME_S = stretched(1.0)
MEMORY_MAX_BYTES = 512 * KIB * KIB
BOMB_MIB = 1024
BOMB_MEMORY_MAX_BYTES = 200 * KIB * KIB

_random = random.Random(11)


def flow_on_0() -> str:
    """A new flow id that belongs to partition 0."""
    while True:
        flow_id = str(UUID(int=_random.getrandbits(128), version=4))
        if home_of(flow_id.encode(), PARTITIONS) == 0:
            return flow_id


def create(flow_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "create_managed",
        "command_id": str(UUID(int=_random.getrandbits(128), version=4)),
        "flow_id": flow_id,
        "issued_by": "tests",
        "controller_id": "c",
        "goal": "g",
        "requester_origin": "r",
        **fields,
    }


@dataclass(frozen=True, slots=True)
class Sent:
    """A record, and the code of its outcome (None: accepted)."""

    name: str
    code: str | None
    value: bytes | None
    key: bytes | None = b"somebody"
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


def a_create(name: str, code: str | None, *, text: str | None = None, **fields: Any) -> Sent:
    """A create that would be good but for `fields`, or for `text` in place of its state."""
    flow_id = flow_on_0()
    body = {k: v for k, v in (create(flow_id) | fields).items() if v is not ...}
    value = json.dumps({**body, "state_json": "HERE"} if text else body)
    value = value.replace('"HERE"', text) if text else value
    return Sent(name, code, value.encode(), flow_id.encode())


def padded(name: str, code: str | None, size: int) -> Sent:
    sent = a_create(name, code)
    return Sent(name, code, (sent.value or b"").ljust(size), sent.key)


def everything() -> Iterator[Sent]:
    # Not JSON, or not one object
    for name, value in {
        "null": None,
        "empty": b"",
        "a space": b" ",
        "not UTF-8": b'{"kind":"\xff"}',
        "UTF-16": '{"kind":"x"}'.encode("utf-16"),
        "an encoded surrogate": b'{"kind":"\xed\xa0\x80"}',
        "an array": b"[]",
        "a text": b'"x"',
        "a number": b"1",
        "a JSON null": b"null",
        "cut off": b'{"kind":',
        "trailing comma": b'{"kind":"x",}',
        "single quotes": b"{'kind':'x'}",
        "a control character": b'{"kind":"\n"}',
        "nested without end": b'{"a":' * 100_000,
        "brackets without end": b"[" * 400_000,
    }.items():
        yield Sent(name, "malformed", value)
    for number in range(5):
        size = _random.randrange(1, 4000)
        yield Sent(f"random bytes {number}", "malformed", _random.randbytes(size))
    good = a_create("", None)
    for name, value in {
        "byte order mark": b"\xef\xbb\xbf" + (good.value or b""),
        "trailing garbage": (good.value or b"") + b"x",
        "two objects": (good.value or b"") * 2,
        "trailing NUL": (good.value or b"") + b"\0",
    }.items():
        yield Sent(name, "malformed", value, good.key)
    # Depth and numbers
    for name, code, text in (
        ("depth 64", None, "[" * 63 + "]" * 63),
        ("depth 65", "malformed", "[" * 64 + "]" * 64),
        ("objects of depth 64", None, '{"a":' * 62 + "{}" + "}" * 62),
        ("objects of depth 65", "malformed", '{"a":' * 63 + "{}" + "}" * 63),
        ("NaN", "malformed", "NaN"),
        ("Infinity", "malformed", "[Infinity]"),
        ("-Infinity", "malformed", "-Infinity"),
        ("2^53 - 1", None, "9007199254740991"),
        ("2^53", "malformed", "9007199254740992"),
        ("-2^53", "malformed", '{"a":[-9007199254740992]}'),
        ("2^53 as a float", "malformed", "9007199254740992.0"),
        ("1e16", "malformed", "1e16"),
        ("1e400", "malformed", "1e400"),
        ("-1e400", "malformed", "-1e400"),
        ("1e-400", None, "1e-400"),
        ("5000 digits", "malformed", "9" * 5000),
        ("0 and 5000 digits", None, "0." + "9" * 5000),
        ("a leading zero", "malformed", "01"),
        ("a lone surrogate", "malformed", r'"\ud800"'),
        ("surrogates in wrong order", "malformed", r'"\udc00\ud800"'),
        ("a lone surrogate in a name", "malformed", r'{"\udfff":1}'),
        ("a pair of surrogates", None, r'"\ud83d\ude00"'),
        ("a NUL in a text", None, r'{"\u0000":"\u001e\u001f"}'),
        ("a negative zero", None, "[-0, -0.0, 0.0, 1E2, 1e-7]"),
        ("a name twice", None, '{"a":1,"a":2}'),
    ):
        yield a_create(name, code, text=text)
    # Versions and fields
    for version in (2, 0, True, "1", 1.0, [1], -1):
        yield a_create(f"version {version!r}", "unsupported_version", schema_version=version)
    yield a_create("version null", None, schema_version=None)
    fields_of: dict[str, dict[str, Any]] = {
        "unknown kind": {"kind": "dance"},
        "no kind": {"kind": ...},
        "kind of another type": {"kind": ["create_managed"]},
        "unknown field": {"priority": 1},
        "no goal": {"goal": ...},
        "goal null": {"goal": None},
        "goal too long": {"goal": "x" * 4097},
        "goal empty": {"goal": ""},
        "issued_by of another type": {"issued_by": 7},
        "dry_run of another type": {"dry_run": "false"},
        "revision negative": {"expected_revision": -1},
        "revision a float": {"expected_revision": 1.0},
        "revision true": {"expected_revision": True},
        "id in upper case": {"command_id": "5E758A71-24E2-540D-BCFF-62B8C12B5508"},
        "id with braces": {"command_id": "{5e758a71-24e2-540d-bcff-62b8c12b5508}"},
        "id with a line feed": {"command_id": "5e758a71-24e2-540d-bcff-62b8c12b5508\n"},
        "flow id of another type": {"flow_id": 1},
        "time without offset": {"expires_at": "2999-01-01T00:00:00"},
        "30 unknown fields": {f"x{n}": n for n in range(30)},
    }
    for name, fields in fields_of.items():
        yield a_create(name, "invalid_command", **fields)
    # Keys and sizes
    yield Sent("no key", "invalid_key", good.value, None)
    yield Sent("another key", "invalid_key", good.value, b"x")
    yield Sent("an empty key", "invalid_key", good.value, b"")
    yield Sent("a key that is not UTF-8", "invalid_key", good.value, b"\xff" * 36)
    yield Sent("a key of 64 bytes", "invalid_key", good.value, b"k" * 64)
    yield Sent("a key of 65 bytes", "too_large", good.value, b"k" * 65)
    yield Sent("a key of 100 KiB", "too_large", None, b"k" * 100 * KIB)
    yield padded("a value at the limit", None, LIMIT)
    yield padded("a value over the limit", "too_large", LIMIT + 1)
    yield Sent("rubbish at the limit", "malformed", b"\xff" * LIMIT)
    yield Sent("rubbish over the limit", "too_large", b"\xff" * (LIMIT + 1))
    # Headers
    headers_of: dict[str, list[tuple[str, bytes | None]]] = {
        "a header without value": [("h", None), ("traceparent", None), ("", b"")],
        "huge headers": [("h", _random.randbytes(1000 * KIB))],
        "ten thousand headers": [(str(n), b"") for n in range(10_000)],
        "forged headers": [(name, b"x") for name in FORGED],
    }
    for name, headers in headers_of.items():
        yield Sent(f"rubbish with {name}", "malformed", b"\xff", b"k", headers)
        sent = a_create(f"a good command with {name}", None)
        yield Sent(sent.name, None, sent.value, sent.key, headers)


def bombs() -> Iterator[Sent]:
    """A few KiB as they come, 64 MiB as they are."""
    yield Sent("zeros", "too_large", bytes(64 * KIB * KIB))
    yield Sent("spaces", "too_large", b" " * (64 * KIB * KIB))


def peak_memory_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * KIB


async def test_one_outcome_and_one_dead_letter_each(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    await set_compression(settings, "producer")
    topic = f"{prefix}.commands"
    seconds: list[float] = []
    places: dict[int, Sent] = {}
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, WorkerProcess, PARTITIONS="2") as (worker,),
        AIOKafkaProducer(
            bootstrap_servers=broker.bootstrap,
            compression_type="gzip",
            max_request_size=128 * KIB * KIB,
        ) as producer,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await worker.start()
        await worker.until_ready()
        for sent in (*everything(), *bombs()):
            bad = await producer.send_and_wait(
                topic, sent.value, sent.key, partition=0, headers=sent.headers
            )
            places[bad.offset] = sent
            flow_id = flow_on_0()
            value = json.dumps(create(flow_id)).encode()
            good = await producer.send_and_wait(topic, value, flow_id.encode())
            assert good.partition == 0
            began = time.monotonic()
            while (topic, 0, good.offset) not in observer.decided:
                assert time.monotonic() < began + patience(20), (
                    f"{sent.name} holds up the partition"
                )
                await observer.catch_up()
                await asyncio.sleep(0.005)
            seconds.append(time.monotonic() - began)
        world = await observer.settled([worker.state_dir], timeout_s=patience(20))
        memory_bytes = peak_memory_bytes(worker.process.pid)
        assert await worker.end() == 0

    codes = {}
    for record in world.all_of("outcomes"):
        outcome = json.loads(record.value or b"")
        codes[outcome["source"]["offset"]] = (outcome["verdict"], outcome["code"])
    wrong = {
        sent.name: codes[offset]
        for offset, sent in places.items()
        if codes[offset] != (("quarantined" if sent.code else "accepted"), sent.code)
    }
    assert wrong == {}
    world.assert_clean()
    assert len(world.of("deadletters", 0)) == sum(1 for s in places.values() if s.code)
    assert statistics.median(seconds) < OUTCOME_S
    assert memory_bytes < MEMORY_MAX_BYTES


async def test_a_header_name_that_is_not_utf8_stops_nobody(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """aiokafka itself would never get past such a record, whatever its value is worth."""
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    topic, flow_id = f"{prefix}.commands", flow_on_0()
    first, second, third = (
        json.dumps(body).encode()
        for body in (
            create(flow_id),
            create(flow_id) | {"kind": "create_mirrored"},
            create(flow_on_0()),
        )
    )
    key, headers = flow_id.encode(), [("a", b"\xff"), ("HEADER", None), ("b", b"")]
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, WorkerProcess, PARTITIONS="2") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
    ):
        await worker.start()
        batch = with_other_bytes(
            producer,
            b"HEADER",
            b"\xff\xfeADER",
            (key, first, []),
            (key, second, headers),
            (b"k", b"\xff", headers),
        )
        await (await producer.send_batch(batch, topic, partition=0))
        await producer.send_and_wait(topic, third, json.loads(third)["flow_id"].encode())
        outcomes = [json.loads(r.value) for r in await read(broker, f"{prefix}.outcomes", 4)]
        (dead_letter,) = await read(broker, f"{prefix}.deadletters", 1)

    outcomes = [(outcome["source"]["offset"], outcome["code"]) for outcome in outcomes]
    assert outcomes == [(0, None), (1, "already_exists"), (2, "malformed"), (3, None)]
    assert (dead_letter.key, dead_letter.value) == (b"k", b"\xff")
    assert dead_letter.headers[:3] == (("a", b"\xff"), (r"\xff\xfeADER", None), ("b", b""))


async def test_a_bomb_is_defused_and_the_partition_goes_on(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """aiokafka would unpack all of it: twice its size in memory, each time that it is fetched."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    await set_compression(settings, "producer")
    topic, flow_ids = f"{prefix}.commands", [flow_on_0() for _ in range(3)]
    around = [(one.encode(), json.dumps(create(one)).encode()) for one in flow_ids]
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, WorkerProcess, PARTITIONS="2") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
    ):
        await worker.start()
        await worker.until_ready()
        before_bytes = peak_memory_bytes(worker.process.pid)
        batch = bomb(producer, b"bomb", BOMB_MIB, *around[:2])
        await (await producer.send_batch(batch, topic, partition=0))
        await producer.send_and_wait(topic, around[2][1], around[2][0])
        outcomes = [json.loads(r.value) for r in await read(broker, f"{prefix}.outcomes", 4)]
        dead_letters = await read(broker, f"{prefix}.deadletters", 2)
        memory_bytes = peak_memory_bytes(worker.process.pid) - before_bytes

    outcomes = [(outcome["source"]["offset"], outcome["code"]) for outcome in outcomes]
    assert outcomes == [(0, None), (1, "too_large"), (2, "malformed"), (3, None)]
    assert [(dead_letter.key, dead_letter.value) for dead_letter in dead_letters] == [
        (b"bomb", bytes(LIMIT)),
        (None, None),
    ]
    assert memory_bytes < BOMB_MEMORY_MAX_BYTES


async def read(broker: EmbeddedBroker, topic: Any, count: Any) -> Any:
    """The first `count` records of partition 0."""
    partition = TopicPartition(topic, 0)
    records: list[Any] = []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    async with consumer, asyncio.timeout(patience(20)):
        consumer.assign([partition])
        while len(records) < count:
            batches = await consumer.getmany(partition, timeout_ms=500)
            records.extend(batches.get(partition, []))
    return records
