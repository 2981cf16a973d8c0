"""Where the time goes from a step's schedule to its handler: hop by hop, by the times at which the
broker appended each record."""

from collections.abc import Mapping, Sequence
from typing import Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from processor.contract.topics import Topics
from processor.settings import Settings
from tests.benchmarks.running import percentile

HOPS: Final = (
    "due to the schedule's append",
    "to the schedule's outcome's append",
    "to the work item's append",
    "to the start's append",
    "to the start's outcome's append",
    "to the handler's first line",
)
SHARES: Final = (50, 99)


def hops(
    settings: Settings, due_s: Mapping[int, float], began_s: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Percentiles of HOPS in ms, over the steps in `due_s`, by number, that have begun."""
    topics = Topics(settings.topic_prefix)
    commands: dict[str, tuple[str, int]] = {}
    times: dict[tuple[int, str], int] = {}
    for value, at_ms in _records(settings, topics.commands):
        if value["kind"] in ("schedule_step", "start_step"):
            step = _number(value["run_id"])
            commands[value["command_id"]] = value["kind"], step
            times.setdefault((step, value["kind"]), at_ms)
    for value, at_ms in _records(settings, topics.outcomes):
        if value["verdict"] == "accepted" and value["command_id"] in commands:
            kind, step = commands[value["command_id"]]
            times[step, f"{kind} outcome"] = at_ms
    for value, at_ms in _records(settings, topics.steps):
        times.setdefault((_number(value["run_id"]), "item"), at_ms)
    names = ("schedule_step", "schedule_step outcome", "item", "start_step", "start_step outcome")
    ways = [
        (due * 1000, *(times[step, name] for name in names), began_s[step] * 1000)
        for step, due in due_s.items()
        if began_s[step]
    ]
    spans: dict[str, list[float]] = {hop: [] for hop in HOPS}
    for way in ways:
        for hop, since, until in zip(HOPS, way, way[1:], strict=False):
            spans[hop].append(until - since)
    return {
        hop: (percentile(ms, SHARES[0]), percentile(ms, SHARES[1])) for hop, ms in spans.items()
    }


def _number(run_id: str) -> int:
    return int(run_id.removeprefix("run-"))


def _records(settings: Settings, topic: str) -> list[tuple[dict[str, str], int]]:
    """All values of a topic, with the times of their appends in ms."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "bench-hops",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    partitions = set(range(settings.partitions))
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
    found = []
    while partitions:
        for record in consumer.consume(10_000, 1.0):
            if (error := record.error()) is None:
                found.append((orjson.loads(record.value() or b""), record.timestamp()[1]))
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                partitions.discard(record.partition())
    consumer.close()
    return found
