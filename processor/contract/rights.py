"""The rights that each role needs on the broker: one table.

`taskflow topics acls` prints it, `taskflow doctor`, a worker's start and its `/ready` check it, and
processor/docs/security.md shows it.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from processor.contract.topics import SignalTopics, Topics


class Operation(StrEnum):
    """What an ACL allows, in Kafka's words."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    ALTER = "Alter"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"

    @property
    def code(self) -> int:
        """Its bit in what a broker reports as authorized operations."""
        return _CODES[self]


_CODES: Final[Mapping[Operation, int]] = MappingProxyType(
    {
        Operation.READ: 3,
        Operation.WRITE: 4,
        Operation.CREATE: 5,
        Operation.ALTER: 7,
        Operation.DESCRIBE: 8,
        Operation.DESCRIBE_CONFIGS: 10,
    }
)


class ResourceKind(StrEnum):
    """What an ACL stands on."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional id"
    CLUSTER = "cluster"


class Resource(NamedTuple):
    """A resource of Kafka's; `prefixed`: all of its kind whose names begin with `name`."""

    kind: ResourceKind
    name: str
    prefixed: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name}{'*' if self.prefixed else ''}"


class Right(NamedTuple):
    """One operation on one resource, and what it is for. Read, Write and Alter include Describe."""

    operation: Operation
    resource: Resource
    purpose: str

    def __str__(self) -> str:
        return f"{self.operation} on {self.resource}"


class Role(StrEnum):
    """What a principal does with the topics."""

    PRODUCER = "producer"
    EXECUTOR = "executor"
    CONSUMER = "consumer"
    OPERATOR = "operator"
    VIEWS = "views"
    VIEWS_ACTING = "views-acting"
    WORKER = "worker"
    SIGNALS = "signals"
    SIGNALLER = "signaller"
    ADMIN = "admin"


ROLES: Final[Mapping[Role, str]] = MappingProxyType(
    {
        Role.PRODUCER: (
            "sends commands of flow owners, and awaits their outcomes: FlowClient, "
            "`taskflow outbox`"
        ),
        Role.EXECUTOR: "does managed steps: `taskflow step run`, StepWorker",
        Role.CONSUMER: "reads the FlowEvents: AuditStream, `taskflow sink postgres`",
        Role.OPERATOR: (
            "uses the program: `flow`, `send --control`, `audit`, `outcomes`, `deadletters`, "
            "`verify`, `replay`, `bulk`, `prune`, `export`, `doctor`, `topics check`"
        ),
        Role.VIEWS: "runs `taskflow views`, without TASKFLOW_VIEWS_TOKEN or an operator token",
        Role.VIEWS_ACTING: "runs `taskflow views` with TASKFLOW_VIEWS_OPERATOR_TOKEN",
        Role.WORKER: "runs `taskflow worker`, also with `--processes` or TASKFLOW_STANDBY",
        Role.SIGNALS: "runs `taskflow signals`",
        Role.SIGNALLER: "sends signals: `taskflow signal send`, SignalClient",
        Role.ADMIN: "runs `taskflow topics create`",
    }
)
"""What a principal of each role does."""


def on_topic(operation: Operation, topic: str, purpose: str = "") -> Right:
    """A right on a topic, by its full name."""
    return Right(operation, Resource(ResourceKind.TOPIC, topic), purpose)


def on_group(operation: Operation, group: str, purpose: str = "") -> Right:
    """A right on a consumer group."""
    return Right(operation, Resource(ResourceKind.GROUP, group), purpose)


def rights(
    role: Role, topics: Topics, group_id: str, *, executors: str | None = None
) -> tuple[Right, ...]:
    """What `role` needs, and nothing else. `group_id` is the workers' group; `executors` the one
    that executors share, those of `taskflow step run` if None."""
    if role is Role.EXECUTOR and executors is not None:
        group = Resource(ResourceKind.GROUP, executors)
        return _executor(topics, group)
    return _TABLE[role](topics, group_id)


def _each(operation: Operation, names: Iterable[str], purpose: str) -> list[Right]:
    return [on_topic(operation, name, purpose) for name in names]


def _producer(topics: Topics, _group_id: str) -> tuple[Right, ...]:
    return (
        on_topic(Operation.WRITE, topics.commands, "send commands"),
        on_topic(Operation.READ, topics.outcomes, "await their outcomes"),
    )


def _executor(topics: Topics, group: Resource) -> tuple[Right, ...]:
    return (
        on_topic(Operation.READ, topics.steps, "learn which steps may be started"),
        on_topic(Operation.WRITE, topics.commands, "start, extend and complete steps"),
        on_topic(Operation.READ, topics.outcomes, "await their outcomes"),
        on_topic(Operation.READ, topics.audit, "what the attempt before left"),
        Right(Operation.READ, group, "share the work items among the executors of a task"),
    )


def _program_executor(topics: Topics, group_id: str) -> tuple[Right, ...]:
    """Of `taskflow step run`, which has a group for each task."""
    return _executor(topics, Resource(ResourceKind.GROUP, f"{group_id}.steps.", prefixed=True))


def _consumer(topics: Topics, _group_id: str) -> tuple[Right, ...]:
    return (on_topic(Operation.READ, topics.audit, "read the FlowEvents; it needs no group"),)


def _operator(topics: Topics, group_id: str) -> tuple[Right, ...]:
    names = [name for name, _ in topics]
    return (
        on_topic(Operation.WRITE, topics.control, "commands with an operator's authority"),
        on_topic(
            Operation.WRITE, topics.commands, "`deadletters redrive` sends back what came there"
        ),
        *_each(Operation.READ, names, "`flow`, `verify`, `replay`, `doctor` and the streams"),
        *_each(Operation.DESCRIBE_CONFIGS, names, "`doctor`, `topics check`"),
        on_group(Operation.DESCRIBE, group_id, "`doctor` counts the workers"),
    )


def _views(topics: Topics, group_id: str) -> tuple[Right, ...]:
    return (
        *_each(Operation.READ, (topics.audit, topics.dead_letters), "what the views show"),
        *_each(
            Operation.DESCRIBE,
            (topics.commands, topics.control, topics.outcomes, topics.state, topics.steps),
            "the ends of the topics, and whether they are there",
        ),
        *_each(Operation.DESCRIBE_CONFIGS, [name for name, _ in topics], "the check at the start"),
        on_group(Operation.READ, f"{group_id}.views", "share the partitions among view workers"),
        on_group(Operation.DESCRIBE, group_id, "/v1/partitions says which worker has which"),
    )


def _views_acting(topics: Topics, group_id: str) -> tuple[Right, ...]:
    acts = (
        on_topic(Operation.WRITE, topics.control, "actions go there, with an operator's authority"),
        on_topic(Operation.WRITE, topics.commands, "dead letters that came there go back"),
        on_topic(Operation.READ, topics.outcomes, "show what came of an action"),
    )
    seen = {right.resource for right in acts}
    return (
        *acts,
        *(
            right
            for right in _views(topics, group_id)
            if right.operation is not Operation.DESCRIBE or right.resource not in seen
        ),
    )


def _worker(topics: Topics, group_id: str) -> tuple[Right, ...]:
    sources = (topics.commands, topics.control)
    results = (topics.outcomes, topics.audit, topics.state)
    return (
        *_each(Operation.READ, sources, "the commands"),
        *_each(Operation.WRITE, sources, "wakes, and records from the wrong partition"),
        *_each(Operation.READ, results, "bring a table up to date"),
        *_each(Operation.WRITE, results, "what a command causes"),
        on_topic(Operation.WRITE, topics.dead_letters, "what cannot be read as a command"),
        on_topic(Operation.WRITE, topics.steps, "work items of managed steps"),
        *_each(Operation.DESCRIBE_CONFIGS, [name for name, _ in topics], "the check at the start"),
        on_group(Operation.READ, group_id, "share the partitions among workers"),
        Right(
            Operation.WRITE,
            Resource(ResourceKind.TRANSACTIONAL_ID, f"{topics.prefix}-", prefixed=True),
            "one transactional id for each partition",
        ),
    )


def _signals(topics: Topics, group_id: str) -> tuple[Right, ...]:
    own = SignalTopics(topics.prefix)
    return (
        on_topic(Operation.READ, topics.audit, "find the waits"),
        on_topic(Operation.READ, own.signals, "read the signals"),
        *_each(Operation.READ, (own.log, own.state), "read its state and its log"),
        *_each(Operation.WRITE, (own.log, own.state), "write its state and its log"),
        on_topic(Operation.WRITE, own.dead_letters, "write signals that no flow takes in time"),
        on_topic(Operation.WRITE, topics.commands, "end the waits"),
        on_topic(Operation.READ, topics.outcomes, "see which flow refuses a signal"),
        on_group(Operation.READ, f"{group_id}.signals", "share the partitions among processes"),
        Right(
            Operation.WRITE,
            Resource(ResourceKind.TRANSACTIONAL_ID, f"{topics.prefix}.signals-", prefixed=True),
            "one transactional id for each partition of a source",
        ),
    )


def _signaller(topics: Topics, _group_id: str) -> tuple[Right, ...]:
    return (on_topic(Operation.WRITE, SignalTopics(topics.prefix).signals, "send signals"),)


def _admin(topics: Topics, _group_id: str) -> tuple[Right, ...]:
    names = [name for name, _ in topics]
    return (
        *_each(Operation.CREATE, names, "make them"),
        *_each(
            Operation.DESCRIBE,
            [name for name in names if name != topics.steps],
            "see whether they are there",
        ),
        on_topic(Operation.ALTER, topics.steps, "add partitions to it"),
    )


_TABLE: Final = MappingProxyType(
    {
        Role.PRODUCER: _producer,
        Role.EXECUTOR: _program_executor,
        Role.CONSUMER: _consumer,
        Role.OPERATOR: _operator,
        Role.VIEWS: _views,
        Role.VIEWS_ACTING: _views_acting,
        Role.WORKER: _worker,
        Role.SIGNALS: _signals,
        Role.SIGNALLER: _signaller,
        Role.ADMIN: _admin,
    }
)
