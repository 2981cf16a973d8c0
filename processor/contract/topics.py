"""The seven topics: names, who writes them, and what the broker must hold them to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

DAY_MS: Final = 86_400_000

MESSAGE_MAX_BYTES: Final = 1024 * 1024 + 12
"""What a Kafka topic takes by default; no record of ours but a dead letter is larger
than a command may be."""
DEAD_LETTER_MAX_BYTES: Final = 4 * 1024 * 1024
"""A dead letter holds the original key and headers beside up to 512 KiB of value."""

UNCOMPRESSED: Final = "uncompressed"
"""Has the broker unpack each batch that a producer sends, and hold it to the size that the topic
takes. Otherwise 120 KB on the wire may hold 150,000 records, each with an outcome of its own."""


MIN_INSYNC: Final = "min.insync.replicas"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic, without its prefix. `config` holds Kafka's own topic settings."""

    name: str
    purpose: str
    config: Mapping[str, str]

    def replicated(self, factor: int) -> dict[str, str]:
        """`config` for `factor` replicas: from three on, a majority must have a record before it is
        acknowledged. With Kafka's default of one, the only replica with it may be lost."""
        return {**self.config, **({MIN_INSYNC: f"{majority(factor)}"} if factor >= 3 else {})}


def majority(factor: int) -> int:
    """More than half of `factor` replicas."""
    return factor // 2 + 1


def topic_spec(name: str, purpose: str, **config: str | int) -> TopicSpec:
    """A topic; an underscore in a name of Kafka's settings stands for its dot."""
    settings = {"message.timestamp.type": "LogAppendTime"}
    settings |= {key.replace("_", "."): str(value) for key, value in config.items()}
    return TopicSpec(name, purpose, MappingProxyType(settings))


COMMANDS: Final = topic_spec(
    "commands",
    "commands of flow owners, keyed by flow id",
    cleanup_policy="delete",
    retention_ms=30 * DAY_MS,
    compression_type=UNCOMPRESSED,
)
CONTROL: Final = topic_spec(
    "control",
    "the same commands with an operator's authority; guarded by the broker's ACLs",
    cleanup_policy="delete",
    retention_ms=30 * DAY_MS,
    compression_type=UNCOMPRESSED,
)
OUTCOMES: Final = topic_spec(
    "outcomes",
    "exactly one outcome for each record of commands and control, in the order of decision",
    cleanup_policy="delete",
    retention_ms=45 * DAY_MS,
)
AUDIT: Final = topic_spec(
    "audit", "FlowEvents, append-only", cleanup_policy="delete", retention_ms=-1, retention_bytes=-1
)
STATE: Final = topic_spec(
    "state",
    "the newest snapshot of each flow and step, and the cursor; a tombstone when pruned",
    cleanup_policy="compact",
    # Small segments and a low dirty ratio: a restore reads what compaction has not got to yet.
    segment_bytes=64 * 1024 * 1024,
    segment_ms=3_600_000,
    min_cleanable_dirty_ratio="0.1",
    delete_retention_ms=DAY_MS,
)
DEAD_LETTERS: Final = topic_spec(
    "deadletters",
    "raw bytes of what could not be read as a command",
    cleanup_policy="delete",
    retention_ms=30 * DAY_MS,
    max_message_bytes=DEAD_LETTER_MAX_BYTES,
)
STEPS: Final = topic_spec(
    "steps",
    "work items: managed steps that may be started now",
    cleanup_policy="delete",
    retention_ms=30 * DAY_MS,
)
SPECS: Final = (COMMANDS, CONTROL, OUTCOMES, AUDIT, STATE, DEAD_LETTERS, STEPS)
"""All have the same number of partitions, but `steps`, which may have more."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The full names under one prefix."""

    prefix: str = "taskflow"

    @property
    def commands(self) -> str:
        return f"{self.prefix}.{COMMANDS.name}"

    @property
    def control(self) -> str:
        return f"{self.prefix}.{CONTROL.name}"

    @property
    def outcomes(self) -> str:
        return f"{self.prefix}.{OUTCOMES.name}"

    @property
    def audit(self) -> str:
        return f"{self.prefix}.{AUDIT.name}"

    @property
    def state(self) -> str:
        return f"{self.prefix}.{STATE.name}"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.{DEAD_LETTERS.name}"

    @property
    def steps(self) -> str:
        return f"{self.prefix}.{STEPS.name}"

    @property
    def by_flow(self) -> list[str]:
        """Those on which a flow's records have the flow's own partition number: all but `steps`."""
        return [name for name, spec in self if spec is not STEPS]

    def __iter__(self) -> Iterator[tuple[str, TopicSpec]]:
        return ((f"{self.prefix}.{spec.name}", spec) for spec in SPECS)


# Of signals, an extension outside of the contract

SIGNALS: Final = topic_spec(
    "signals",
    "events that name a wait by topic and correlation id, with any key",
    cleanup_policy="delete",
    retention_ms=30 * DAY_MS,
    compression_type=UNCOMPRESSED,
)
SIGNAL_LOG: Final = topic_spec(
    "signals.log",
    "signals and changes of waits, by topic and correlation id; internal",
    cleanup_policy="delete",
    retention_ms=30 * DAY_MS,
)
SIGNAL_STATE: Final = topic_spec(
    "signals.state",
    "the state of `taskflow signals`: waits, early signals, positions; internal",
    cleanup_policy="compact",
    segment_bytes=64 * 1024 * 1024,
    segment_ms=3_600_000,
    min_cleanable_dirty_ratio="0.1",
    delete_retention_ms=DAY_MS,
)
SIGNAL_DEAD_LETTERS: Final = topic_spec(
    "signals.deadletters",
    "signals that no flow took in time, and invalid ones",
    cleanup_policy="delete",
    retention_ms=30 * DAY_MS,
    max_message_bytes=DEAD_LETTER_MAX_BYTES,
)
SIGNAL_SPECS: Final = (SIGNALS, SIGNAL_LOG, SIGNAL_STATE, SIGNAL_DEAD_LETTERS)
"""All have as many partitions as the seven topics."""


@dataclass(frozen=True, slots=True)
class SignalTopics:
    """The full names of the topics of `taskflow signals` under one prefix."""

    prefix: str = "taskflow"

    @property
    def signals(self) -> str:
        return f"{self.prefix}.{SIGNALS.name}"

    @property
    def log(self) -> str:
        return f"{self.prefix}.{SIGNAL_LOG.name}"

    @property
    def state(self) -> str:
        return f"{self.prefix}.{SIGNAL_STATE.name}"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.{SIGNAL_DEAD_LETTERS.name}"

    def __iter__(self) -> Iterator[tuple[str, TopicSpec]]:
        return ((f"{self.prefix}.{spec.name}", spec) for spec in SIGNAL_SPECS)
