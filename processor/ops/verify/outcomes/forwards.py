"""Check forwarded records against their copies on other partitions: I9, I12."""

from typing import NamedTuple

from processor.contract.headers import forwarded_from, without_forwarding
from processor.ops.verify.contract import canonical, hash16
from processor.ops.verify.ports import LogRecord, Logs
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import ScratchStore


class Range(NamedTuple):
    """Which offsets of a source were read; `first_ms` is the first record's append time, None if
    there was none."""

    start: int
    end: int
    first_ms: int | None


async def check_forwards(
    scratch: ScratchStore, report: Report, logs: Logs, ranges: dict[tuple[str, int], Range]
) -> None:
    """Check that each forwarded record has its copy where its key belongs.

    `ranges`: what was read of each source, by topic and partition.
    """
    missing = {
        (one.origin.split("/")[0], one.home)
        for one, same in scratch.forward_pairs()
        if same is None
    }
    for topic, home in missing:
        # What came there while other partitions were read.
        async with logs(home) as log:
            stable = (await log.offset_range(topic)).stable
            async for records in log.read(topic, ranges[topic, home].end, stable):
                for record in records:
                    if (origin := forwarded_from(record.headers)) is not None:
                        scratch.put_copy(str(origin), copied(record))
    for one, same in scratch.forward_pairs():
        report.checked["I9"] += 1
        topic = one.origin.split("/")[0]
        read = ranges[topic, one.home]
        kept = read.start == 0 or (read.first_ms is not None and one.at_ms >= read.first_ms)
        if same or (same is None and not kept):
            continue
        kind, what = (
            ("forward_without_copy", "has no copy on")
            if same is None
            else ("forward_differs", "has another copy on")
        )
        report.add(
            *("I9", kind, f"{one.origin} was forwarded, but {what} partition {one.home}."),
            topic=topic.rpartition(".")[0] + ".outcomes",
            partition=one.partition,
            offset=one.offset,
            flow_id=one.flow_id,
        )


def copied(record: LogRecord) -> bytes:
    """Digest what a forwarded record and its copy share: key, value, and the headers before the
    one that makes it a copy."""
    headers = [[n, _hex(v)] for n, v in without_forwarding(record.headers)]
    return hash16(canonical([_hex(record.key), _hex(record.value), headers]))


def _hex(raw: bytes | None) -> str | None:
    return None if raw is None else raw.hex()
