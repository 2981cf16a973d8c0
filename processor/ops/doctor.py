"""Judge what `taskflow doctor` found: each finding is good, a warning or bad, with what to do.

Facts in, findings out: the caller has read the broker and the disk already.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from processor.contract.rights import Right, Role
from processor.contract.values import instant

PYTHON_MIN: Final = (3, 11)
AIOKAFKA: Final = "0.14.0"
"""The one version whose private steps we count (adapters/kafka/internals.py)."""
OPEN_LONG_MS: Final = 15_000
"""As long as the broker lets an owner's transaction stay open: an older one is not a batch's."""
UNDECIDED_LATE_MS: Final = 10_000
UNDECIDED_BAD_MS: Final = 60_000
OVERDUE_LATE_MS: Final = 10_000
OVERDUE_BAD_MS: Final = 60_000
VIEWS_LATE_MS: Final = 10_000
CLOCK_OFF_MS: Final = 2_000
CLOCK_BAD_MS: Final = 5 * 60_000
DISK_LOW_BYTES: Final = 2 * 1024**3
DISK_BAD_BYTES: Final = 256 * 1024**2


class Level(StrEnum):
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


class Finding(NamedTuple):
    """`check` is the short name of what was looked at; `do` is empty where there is nothing to."""

    check: str
    level: Level
    what: str
    do: str = ""


class Versions(NamedTuple):
    """`apis`: for each request that a worker needs, the versions that the client and the broker
    speak, each from … to; None where the broker does not know it."""

    python: tuple[int, int, int]
    aiokafka: str
    apis: Mapping[str, tuple[tuple[int, int], tuple[int, int] | None]]


class Mismatched(NamedTuple):
    """One way in which a topic is not what it must be; `fatal`: no worker starts on it. `cure`:
    what to do about it."""

    sentence: str
    fatal: bool
    cure: str


class Undecided(NamedTuple):
    """What a partition has still to decide: offsets behind its cursor, and the append time (ms) of
    the first record among them, None if there are only transaction markers. `hidden`: offsets that
    lie behind an open transaction, of which nothing is known."""

    partition: int
    offsets: int
    first_ms: int | None
    hidden: int = 0


class Open(NamedTuple):
    """A transaction that is open: where it begins, and when that was written, as far as known."""

    topic: str
    partition: int
    offset: int
    since_ms: int | None


class TableSeen(NamedTuple):
    """A table file: `problem` is what its check said, None if it is sound; `behind` how many
    offsets of `audit` it has not seen, None if that is unknown, below 0 if it is ahead."""

    path: str
    partition: int
    partitions: int | None
    problem: str | None
    behind: int | None


def versions(seen: Versions) -> Iterator[Finding]:
    python = ".".join(map(str, seen.python))
    if seen.python < PYTHON_MIN:
        yield Finding("python", Level.BAD, f"Python {python}", "Install Python 3.11 or newer.")
    else:
        yield Finding("python", Level.GOOD, f"Python {python}")
    if seen.aiokafka != AIOKAFKA:
        yield Finding(
            *("aiokafka", Level.BAD, f"aiokafka {seen.aiokafka}, made for {AIOKAFKA}"),
            "Install what requirements.lock names: with another version an unseen retry of a "
            "commit may go unnoticed.",
        )
    else:
        yield Finding("aiokafka", Level.GOOD, f"aiokafka {seen.aiokafka}")
    if not seen.apis:
        return
    apart = [
        name
        for name, (ours, theirs) in sorted(seen.apis.items())
        if theirs is None or ours[1] < theirs[0] or theirs[1] < ours[0]
    ]
    if apart:
        yield Finding(
            *("broker API", Level.BAD, f"no common version of {', '.join(apart)}"),
            "Use Apache Kafka 2.5 to 4.x, or what speaks its protocol.",
        )
    else:
        spoken = {
            name: min(ours[1], theirs[1])
            for name, (ours, theirs) in seen.apis.items()
            if theirs is not None
        }
        spoken_text = ", ".join(f"{name} v{version}" for name, version in sorted(spoken.items()))
        yield Finding("broker API", Level.GOOD, spoken_text)


def topics(mismatches: Sequence[Mismatched], count: int) -> Iterator[Finding]:
    """`count` topics were looked at."""
    if not mismatches:
        yield Finding("topics", Level.GOOD, f"all {count} topics are as they must be")
    for one in mismatches:
        level = Level.BAD if one.fatal else Level.WARNING
        yield Finding("topics", level, one.sentence, one.cure)


def codecs(decoded: Mapping[str, str | None], used: str) -> Iterator[Finding]:
    """`decoded`: by compression, why a batch of it cannot be read here, or None; `used`: what
    TASKFLOW_COMPRESSION says."""
    broken = {name: why for name, why in decoded.items() if why is not None}
    if not broken:
        yield Finding("codecs", Level.GOOD, f"{', '.join(sorted(decoded))} can be decoded")
    for name, why in sorted(broken.items()):
        bad = "we write it ourselves" if name == used else "a producer may use it"
        yield Finding(
            *("codecs", Level.BAD, f"{name} cannot be decoded ({why}); {bad}"),
            "Install aiokafka[lz4,snappy,zstd]: the first such batch would stop its partition.",
        )


def authorizations(principal: str, role: Role, missing: Sequence[Right]) -> Iterator[Finding]:
    """`missing`: what `principal` lacks of the rights of `role`."""
    if not missing:
        yield Finding("authorization", Level.GOOD, f"{principal} may do what a {role} needs")
    for right in missing:
        yield Finding(
            *("authorization", Level.BAD, f"{principal} lacks {right}"),
            f"`taskflow topics acls --role {role}` prints the ACLs that it needs.",
        )


def denied(check: str, sentence: str) -> Finding:
    """What could not be looked at, for want of a right."""
    return Finding(check, Level.BAD, sentence, "Allow it, or run this as who may.")


def lag(undecided: Sequence[Undecided], members: int | None, now_ms: int) -> Iterator[Finding]:
    """`members` of the consumer group, None if that is not known."""
    if hidden := [one for one in undecided if one.hidden]:
        partitions = ", ".join(str(one.partition) for one in hidden)
        yield Finding(
            *("lag", Level.WARNING),
            f"{sum(one.hidden for one in hidden):,} offsets of commands or control lie behind an "
            f"open transaction, on partition {partitions}: what they hold cannot be decided",
            "See `transactions`: a producer's ends in a moment, one that hangs has to be aborted.",
        )
    late = [one for one in undecided if one.first_ms is not None]
    workers = "" if members is None else f"; {members} worker{'' if members == 1 else 's'}"
    if not late:
        count = sum(one.offsets for one in undecided)
        left = f"; {count} offsets are transaction markers" if count else ""
        visible = "every command that can be read" if hidden else "every command"
        yield Finding("lag", Level.GOOD, f"{visible} is decided{left}{workers}")
        if members == 0:
            yield Finding(
                *("workers", Level.WARNING, "no worker is in the group"), "`taskflow worker`"
            )
        return
    oldest = min(late, key=lambda one: one.first_ms or 0)
    age_ms = now_ms - (oldest.first_ms or 0)
    level = Level.GOOD
    if age_ms > UNDECIDED_BAD_MS or members == 0:
        level = Level.BAD
    elif age_ms > UNDECIDED_LATE_MS:
        level = Level.WARNING
    what = (
        f"{sum(one.offsets for one in late):,} offsets undecided on {len(late)} partitions, the "
        f"oldest command on {oldest.partition}, for {_span(age_ms)}{workers}"
    )
    do = ""
    if level is not Level.GOOD:
        do = (
            "Start a worker: `taskflow worker`."
            if members == 0
            else "Look at /ready of the partition's worker: it says what it waits for. If all of "
            "them decide, start more workers, up to the number of partitions."
        )
    yield Finding("lag", level, what, do)


def transactions(open_transactions: Iterable[Open], now_ms: int) -> Iterator[Finding]:
    found = False
    for one in open_transactions:
        age_ms = None if one.since_ms is None else now_ms - one.since_ms
        if age_ms is not None and age_ms <= OPEN_LONG_MS:
            continue
        found = True
        since = "" if one.since_ms is None else f" since {instant(one.since_ms)}"
        yield Finding(
            *("transactions", Level.BAD),
            f"one is open on {one.topic}/{one.partition} from offset {one.offset} on{since}; it "
            "hides what comes behind",
            "It ends by its own timeout, or by `kafka-transactions.sh --bootstrap-server … abort "
            f"--topic {one.topic} --partition {one.partition} --start-offset {one.offset}`.",
        )
    if not found:
        yield Finding("transactions", Level.GOOD, "none hangs")


def waits(flow_id: str | None, due_ms: int | None, now_ms: int) -> Iterator[Finding]:
    """`flow_id`, `due_ms`: the wait that ends soonest, None if no flow waits for a time."""
    if due_ms is None or flow_id is None:
        yield Finding("waits", Level.GOOD, "no flow waits for a time")
        return
    overdue_ms = now_ms - due_ms
    if overdue_ms <= OVERDUE_LATE_MS:
        yield Finding("waits", Level.GOOD, f"none is overdue; the next ends at {instant(due_ms)}")
        return
    yield Finding(
        *("waits", Level.BAD if overdue_ms > OVERDUE_BAD_MS else Level.WARNING),
        f"flow {flow_id} should have been woken at {instant(due_ms)}, {_span(overdue_ms)} ago",
        "Its owner wakes it: look at lag and /ready; `taskflow flow resume` does it by hand.",
    )


def views(url: str, view: Mapping[str, Any] | str | None) -> Iterator[Finding]:
    """Judge the views at `url`. `view`: their report on completeness and freshness; None if they
    show other topics; a text with the reason if no views respond."""
    at = f"the views at {url}"
    if isinstance(view, str):
        yield Finding("views", Level.GOOD, f"{view} `taskflow views` starts some.")
    elif view is None:
        do = "Set TASKFLOW_VIEWS_HTTP to the address of this deployment's views."
        yield Finding("views", Level.WARNING, f"{at} show topics of another broker or prefix", do)
    elif view["missing"]:
        missing = ", ".join(map(str, view["missing"]))
        do = "Start a view worker: `taskflow views`."
        yield Finding("views", Level.WARNING, f"{at} do not show partitions {missing}", do)
    elif view["lag_ms"] is None or view["lag_ms"] > VIEWS_LATE_MS:
        behind = "an unknown time" if view["lag_ms"] is None else _span(view["lag_ms"])
        do = "Read `behind` in their /ready, and their log."
        yield Finding("views", Level.WARNING, f"{at} are {behind} behind the audit", do)
    else:
        yield Finding("views", Level.GOOD, f"{at} show all partitions")


def tables(
    seen: Sequence[TableSeen], state_dir: str, partitions: int | None, free_bytes: int | None
) -> Iterator[Finding]:
    """`partitions` that the topics have; `free_bytes` of the disk that holds the tables."""
    if not seen:
        yield Finding("tables", Level.GOOD, f"there are none in {state_dir}")
    for one in seen:
        yield _table(one, partitions)
    if free_bytes is None:
        return
    level = Level.GOOD
    if free_bytes < DISK_LOW_BYTES:
        level = Level.BAD if free_bytes < DISK_BAD_BYTES else Level.WARNING
    yield Finding(
        *("disk", level, f"{free_bytes / 1024**2:,.0f} MiB are free at {state_dir}"),
        ""
        if level is Level.GOOD
        else "Make room: a worker whose table cannot be written takes its partition over again "
        "and again. Tables are caches: those of partitions that live elsewhere may go.",
    )


def _table(one: TableSeen, partitions: int | None) -> Finding:
    again = f"`taskflow rebuild --partition {one.partition}` rebuilds it (stop its worker)."
    name = f"{one.path}"
    if one.problem is not None:
        return Finding("tables", Level.BAD, f"{name}: {one.problem}", again)
    if partitions is not None and one.partitions is not None and one.partitions != partitions:
        return Finding(
            *("tables", Level.BAD),
            f"{name} holds one of {one.partitions} partitions, but the topics have {partitions}",
            "It is of other topics: remove it, a worker restores its own.",
        )
    if one.behind is None:
        return Finding("tables", Level.GOOD, f"{name} is sound")
    if one.behind < 0:
        return Finding(
            *("tables", Level.WARNING),
            f"{name} is {-one.behind} offsets ahead of the audit topic: it is of other topics, or "
            "the broker lost what it had acknowledged",
            "Its next owner restores it by itself; look at `taskflow verify` then.",
        )
    # Behind the last record stands the marker of its transaction, which no table sees.
    level = "level with the audit topic" if one.behind <= 1 else f"{one.behind:,} offsets behind"
    return Finding("tables", Level.GOOD, f"{name} is sound, {level}")


def clock(
    newest_ms: int | None, now_ms: int, probed: tuple[int, int, int] | None = None
) -> Iterator[Finding]:
    """This machine's clock beside the broker's. `newest_ms`: the newest append time seen, which
    the broker's clock is past; `probed`: our time before and after a record, and when the broker
    says that it was appended."""
    if probed is not None:
        before_ms, after_ms, appended_ms = probed
        off_ms = 0
        if not before_ms <= appended_ms <= after_ms:
            off_ms = (before_ms if appended_ms < before_ms else after_ms) - appended_ms
        which = "ahead of" if off_ms > 0 else "behind"
        yield _clock(
            abs(off_ms),
            f"{_span(abs(off_ms))} {which} the broker's"
            if off_ms
            else f"within {_span(after_ms - before_ms)} of the broker's",
        )
    elif newest_ms is None:
        yield Finding("clock", Level.GOOD, "no record to compare it with; --probe asks the broker")
    elif newest_ms > now_ms:
        behind_ms = newest_ms - now_ms
        yield _clock(behind_ms, f"at least {_span(behind_ms)} behind the broker's")
    else:
        yield Finding(
            *("clock", Level.GOOD),
            f"not behind the broker's newest record, of {instant(newest_ms)}; whether it is ahead "
            "only --probe can tell",
        )


def _clock(off_ms: int, what: str) -> Finding:
    level = Level.GOOD
    if off_ms > CLOCK_OFF_MS:
        level = Level.BAD if off_ms > CLOCK_BAD_MS else Level.WARNING
    do = "" if level is Level.GOOD else "Set it by NTP: flows do not care, clients' expiries do."
    return Finding("clock", level, what, do)


def worst(findings: Iterable[Finding]) -> Level:
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.GOOD)


def _span(ms: int) -> str:
    """A time to read: 250 ms, 12 s, 5 min, 3 h, 2 d."""
    if ms < 1_000:
        return f"{ms} ms"
    for unit, length_ms in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * length_ms:
            return f"{ms // length_ms} {unit}"
    return f"{ms // 1_000} s"
