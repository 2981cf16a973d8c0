"""The seven topics: making them, and comparing what is there with what must be."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from processor.adapters.kafka.access.topic_lookup import allows, look_up
from processor.adapters.kafka.client_config import connection_options, ensure_reachable
from processor.adapters.kafka.errors import NotAuthorized, TopicsWrong, explain, explained
from processor.adapters.kafka.internals import AnyBrokerAdmin
from processor.contract.rights import Operation, Right, Role, on_topic
from processor.contract.topics import (
    AUDIT,
    MESSAGE_MAX_BYTES,
    MIN_INSYNC,
    SIGNAL_SPECS,
    STEPS,
    SignalTopics,
    Topics,
    TopicSpec,
)
from processor.settings import Settings

REQUEST_TIMEOUT_MS = 10_000
APPEAR_TIMEOUT_S = 15.0

_EQUAL = frozenset({"cleanup.policy", "message.timestamp.type"})
_AT_LEAST = frozenset(
    {"retention.ms", "retention.bytes", "delete.retention.ms", "max.message.bytes", MIN_INSYNC}
)
"""Here -1 means without end. Segment sizes and ratios are tuning, an operator's to choose."""
_ADVISED = frozenset({"compression.type"})
"""Must be equal, but a worker starts without: topics of before may have another."""
_WHY: Mapping[str, str] = {
    "compression.type": "a small compressed batch can hold 100,000 records and more",
    MIN_INSYNC: "what is acknowledged may be lost with one broker",
}

_AT_LEAST_WORDS, _WITHOUT_END_WORDS = "at least ", " (without end)"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One way in which a topic is not what it must be.

    `what` is `topic`, `partitions` or the name of a topic setting of Kafka's.
    """

    topic: str
    what: str
    expected: str
    found: str

    @property
    def fatal(self) -> bool:
        """Whether a worker must not start on it; a short retention is for people to judge."""
        return self.what in _EQUAL | {"topic", "partitions", "max.message.bytes"}

    @property
    def cure(self) -> str:
        """What an operator can do."""
        if self.what == "topic":
            return "`taskflow topics create` makes it."
        if self.what == "partitions":
            return (
                "Set TASKFLOW_PARTITIONS to their number, or `taskflow repartition` copies all to "
                "topics with another."
            )
        value = self.expected.removeprefix(_AT_LEAST_WORDS).removesuffix(_WITHOUT_END_WORDS)
        return (
            "`kafka-configs.sh --bootstrap-server BROKER --alter --entity-type topics "
            f"--entity-name {self.topic} --add-config {self.what}={value}` sets it."
        )

    def __str__(self) -> str:
        if self.what == "topic":
            return f"{self.topic} does not exist"
        sentence = f"{self.topic}: {self.what} is {self.found}, must be {self.expected}"
        if why := _WHY.get(self.what):
            sentence += f"; {why}"
        return sentence


@asynccontextmanager
async def open_admin(
    settings: Settings, needs: Right | None = None
) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client that is connected; `needs`: the right without which Kafka refuses what is
    asked by it. Raises BrokerUnreachable, also out of the block."""
    await ensure_reachable(settings)
    with explained(settings, needs):
        admin = AnyBrokerAdmin(
            **connection_options(settings, "admin"), request_timeout_ms=REQUEST_TIMEOUT_MS
        )
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()


async def create_topics(settings: Settings) -> list[str]:
    """Make those of the seven topics that are missing, and add the partitions that `steps` lacks;
    the full names of those that were made or grew.

    What exists is left as it is otherwise. Returns when every partition has a leader.
    Raises BrokerUnreachable, and TopicsWrong if the broker refuses.
    """
    names = dict(Topics(settings.topic_prefix))
    steps = Topics(settings.topic_prefix).steps
    async with open_admin(settings) as admin:
        others = [name for name in names if name != steps]
        existing = await _partitions(admin, settings, others, Operation.DESCRIBE)
        existing |= await _partitions(admin, settings, [steps], Operation.ALTER)
        missing = {name: spec for name, spec in names.items() if name not in existing}
        made = await _create(admin, missing, settings) if missing else []
        if existing.get(steps, settings.steps_partitions) < settings.steps_partitions:
            more = NewPartitions(total_count=settings.steps_partitions)
            with explained(settings, on_topic(Operation.ALTER, steps)):
                await admin.create_partitions({steps: more})
            made.append(steps)
        await _until_there(admin, settings, names)
    return made


async def create_signal_topics(settings: Settings) -> list[str]:
    """Make those topics of `taskflow signals` that are missing; the full names of those made.

    As `create_topics` otherwise.
    """
    names = dict(SignalTopics(settings.topic_prefix))
    async with open_admin(settings) as admin:
        existing = await _partitions(admin, settings, names, Operation.DESCRIBE)
        missing = {name: spec for name, spec in names.items() if name not in existing}
        made = await _create(admin, missing, settings) if missing else []
        await _until_there(admin, settings, names)
    return made


async def create_replay_topics(settings: Settings, names: Sequence[str]) -> list[str]:
    """Make those of `names` that are missing, as `replay to` needs them: with the partitions of the
    audit and its settings, but with the events' own timestamps. Returns the names of those made.

    Raises BrokerUnreachable, NotAuthorized, and TopicsWrong without an audit topic.
    """
    audit = Topics(settings.topic_prefix).audit
    config = {**AUDIT.config, "message.timestamp.type": "CreateTime"}
    async with open_admin(settings) as admin:
        existing = await _partitions(admin, settings, [audit, *names], Operation.DESCRIBE)
        count = require([audit], existing)[audit]
        missing = {name: TopicSpec(name, "", config) for name in names if name not in existing}
        return await _create(admin, missing, settings, count) if missing else []


async def _until_there(
    admin: AIOKafkaAdminClient, settings: Settings, names: Iterable[str]
) -> None:
    """Wait until each topic has its partitions, and each partition a leader."""
    deadline = time.monotonic() + APPEAR_TIMEOUT_S
    while True:
        seen = await look_up(admin, names)
        steps = seen.get(Topics(settings.topic_prefix).steps)
        grown = steps is None or (steps.partitions or 0) >= settings.steps_partitions
        if grown and all(one.led for one in seen.values()):
            return
        if time.monotonic() > deadline:
            raise TopicsWrong(
                f"The topics of {settings.topic_prefix} are made, but within "
                f"{APPEAR_TIMEOUT_S:.0f} s not all of their partitions had a leader."
            )
        await asyncio.sleep(0.05)


async def check_topics(settings: Settings) -> list[Mismatch]:
    """Everything in which the topics are not what they must be; nothing is changed.

    Raises BrokerUnreachable.
    """
    names = dict(Topics(settings.topic_prefix))
    async with open_admin(settings) as admin:
        partitions = await _partitions(admin, settings, names, Operation.DESCRIBE)
        there = [name for name in names if name in partitions]
        configs = await _configs(admin, there, settings)
        looked_up = await look_up(admin, there)
    found: list[Mismatch] = []
    for name, spec in names.items():
        if name not in partitions:
            found.append(Mismatch(name, "topic", "there", "missing"))
            continue
        count = partitions[name]
        if spec is STEPS:
            if count < settings.steps_partitions:
                expected = f"at least {settings.steps_partitions}"
                found.append(Mismatch(name, "partitions", expected, str(count)))
        elif count != settings.partitions:
            found.append(Mismatch(name, "partitions", str(settings.partitions), str(count)))
        found.extend(_compare(name, spec.replicated(looked_up[name].replicas), configs[name]))
    return found


async def ensure_topics(settings: Settings) -> list[Mismatch]:
    """Raise TopicsWrong if a worker must not start on these topics; else what else is amiss."""
    mismatches = await check_topics(settings)
    if fatal := [mismatch for mismatch in mismatches if mismatch.fatal]:
        missing = [mismatch.topic for mismatch in fatal if mismatch.what == "topic"]
        cure = (
            "`taskflow topics create` makes what is missing"
            if len(missing) == len(fatal)
            else "`taskflow topics check` says more"
        )
        raise TopicsWrong(f"{'; '.join(map(str, fatal))}. Nothing was processed; {cure}.")
    return mismatches


def layout_changed(topic: str, found: int, settings: Settings) -> TopicsWrong:
    """What is wrong once a topic has `found` partitions, or more than that number."""
    return TopicsWrong(
        f"{topic} now has {found} partitions instead of {settings.partitions}. Their number can "
        "never change: new commands of a flow would lie on another partition than its history. The "
        "worker stopped; `taskflow topics check` lists what differs. Put topics with the old "
        "number back, or begin with topics of another TASKFLOW_TOPIC_PREFIX."
    )


async def partition_counts(
    settings: Settings, topics: Iterable[str], operation: Operation = Operation.READ
) -> dict[str, int]:
    """Those of `topics` (full names) that are there, with the number of their partitions. Makes
    none. `operation`: what is to be done with them. Raises BrokerUnreachable, NotAuthorized."""
    async with open_admin(settings) as admin:
        return await _partitions(admin, settings, topics, operation)


async def count_partitions(
    settings: Settings, topics: Iterable[str], operation: Operation = Operation.READ
) -> dict[str, int]:
    """How many partitions each of `topics` has, to do `operation` with. Raises BrokerUnreachable,
    NotAuthorized, TopicsWrong."""
    wanted = list(topics)
    return require(wanted, await partition_counts(settings, wanted, operation))


def require(wanted: Iterable[str], counts: dict[str, int]) -> dict[str, int]:
    """Return `counts`, which has each of `wanted`. Raises TopicsWrong."""
    if missing := [topic for topic in wanted if topic not in counts]:
        of_signals = missing[0].endswith(tuple(f".{spec.name}" for spec in SIGNAL_SPECS))
        option = " --signals" if of_signals else ""
        raise TopicsWrong(
            f"{', '.join(missing)} does not exist; `taskflow topics create{option}` makes the "
            "topics."
        )
    return counts


async def counted_partitions(
    admin: AIOKafkaAdminClient, settings: Settings, topics: Iterable[str]
) -> dict[str, int]:
    """As `partition_counts`, by a client that is connected."""
    return await _partitions(admin, settings, topics, Operation.DESCRIBE)


async def topic_configs(settings: Settings, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    """Kafka's settings of each topic. Raises BrokerUnreachable, AccessDenied."""
    async with open_admin(settings) as admin:
        return await _configs(admin, topics, settings)


def _compare(topic: str, config: Mapping[str, str], found: Mapping[str, str]) -> list[Mismatch]:
    wanted = {"max.message.bytes": str(MESSAGE_MAX_BYTES), **config}
    mismatches = []
    for name, expected in wanted.items():
        value = found.get(name, "")
        if name in _EQUAL | _ADVISED and value != expected:
            mismatches.append(Mismatch(topic, name, expected, value))
        elif name in _AT_LEAST and _span(value) < _span(expected):
            mismatches.append(Mismatch(topic, name, _at_least(expected), value))
    return mismatches


def _at_least(expected: str) -> str:
    if expected == "-1":
        return f"-1{_WITHOUT_END_WORDS}"
    return f"{_AT_LEAST_WORDS}{expected}"


def _span(value: str) -> float:
    return float("inf") if value == "-1" else float(value or 0)


async def _partitions(
    admin: AIOKafkaAdminClient, settings: Settings, topics: Iterable[str], operation: Operation
) -> dict[str, int]:
    found = await look_up(admin, topics)
    if missing := [
        on_topic(operation, name)
        for name, one in found.items()
        if not allows(one.operations, operation)
    ]:
        raise NotAuthorized.by(settings, missing)
    return {name: one.partitions for name, one in found.items() if one.partitions is not None}


async def _create(
    admin: AIOKafkaAdminClient,
    wanted: Mapping[str, TopicSpec],
    settings: Settings,
    partitions: int | None = None,
) -> list[str]:
    """`partitions`: of each, instead of those that the settings name."""
    response = await admin.create_topics(
        [
            NewTopic(
                name,
                num_partitions=partitions or settings.partitions_of(name),
                replication_factor=settings.replication_factor,
                topic_configs=spec.replicated(settings.replication_factor),
            )
            for name, spec in wanted.items()
        ]
    )
    # The response carries the errors; aiokafka raises none of them.
    made: list[str] = []
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        if error is NoError:
            made.append(name)
        elif error in (ClusterAuthorizationFailedError, TopicAuthorizationFailedError):
            raise NotAuthorized.by(settings, [on_topic(Operation.CREATE, name)], Role.ADMIN)
        elif error is not TopicAlreadyExistsError:
            why = (message[0] if message and message[0] else error.__name__).rstrip(".")
            raise TopicsWrong(f"The broker did not make {name}: {why}.")
    return made


async def _configs(
    admin: AIOKafkaAdminClient, topics: Sequence[str], settings: Settings
) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    responses = await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    )
    configs: dict[str, dict[str, str]] = {}
    for response in responses:
        for code, _message, _type, topic, entries in _resources(response):
            if for_code(code) is not NoError:
                needs = on_topic(Operation.DESCRIBE_CONFIGS, topic)
                raise explain(for_code(code)(topic), settings, needs=needs)
            configs[topic] = {entry[0]: entry[1] or "" for entry in entries}
    return configs


def _resources(response: Any) -> Sequence[tuple[int, str, int, str, Sequence[Sequence[Any]]]]:
    resources: Sequence[tuple[int, str, int, str, Sequence[Sequence[Any]]]] = response.resources
    return resources
