"""Look at what `taskflow doctor` looks at, and print what is found."""

import asyncio
import importlib.metadata
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from rich.text import Text

from processor.adapters.kafka.access.authorization import missing_rights
from processor.adapters.kafka.access.principal import principal
from processor.adapters.kafka.admin import cluster_inspection as inspection
from processor.adapters.kafka.admin.topic_admin import check_topics, partition_counts
from processor.adapters.kafka.client_config import ensure_reachable
from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, NotAuthorized
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.adapters.kafka.reader.topic_reader import end_offsets
from processor.adapters.sqlite.readonly import queries as queries
from processor.cli.common.history import open_history
from processor.cli.common.output import console, for_people, table, write_json
from processor.cli.common.runner import run
from processor.cli.flow.lookup import list_waiting
from processor.client import FlowClient, OutcomeTimeout
from processor.client.http.views_client import NoViews, asking, own_views_url
from processor.contract.rights import Operation, Role, rights
from processor.contract.topics import Topics
from processor.contract.values import parse_timestamp
from processor.domain.waits import due_ms
from processor.engine.batch import PartitionConfig
from processor.engine.ports import OffsetRange
from processor.errors import TaskflowError
from processor.ops import doctor as judge
from processor.ops.doctor import Finding, Level, TableSeen, Undecided
from processor.recovery.checkpoint import last_record, newest_cursor
from processor.runtime import now_ms
from processor.settings import Settings

T = TypeVar("T")
PATIENCE_S = 3.0
PROBE_TIMEOUT_S = 15.0
SIDE_BY_SIDE = 8
"""Partitions that are looked at at once."""
STYLES = {Level.GOOD: "green", Level.WARNING: "yellow", Level.BAD: "bold red"}


def examine(settings: Settings, *, probe: bool, role: Role, json: bool) -> int:
    """Print all findings. The exit code: 1 if something is bad, 3 if no broker answers."""
    findings, unreachable = run(lambda: _examine(settings, probe, role))
    if for_people(json):
        rows = [
            (Text(found.level.value, style=STYLES[found.level]), found.check, _text(found))
            for found in findings
        ]
        console().print(table(None, ("", "check", "found"), rows))
    else:
        for found in findings:
            write_json(found._asdict())
    if unreachable:
        return 3
    return int(judge.worst(findings) is Level.BAD)


async def _examine(settings: Settings, probe: bool, role: Role) -> tuple[list[Finding], bool]:
    """All findings, and whether there was no broker to ask."""
    findings: list[Finding] = []
    reachable = True
    try:
        await ensure_reachable(settings, patience_s=PATIENCE_S)
        findings.append(Finding("broker", Level.GOOD, f"{settings.bootstrap_servers} answers"))
    except BrokerUnreachable as error:
        reachable = False
        do = "See the security settings." if isinstance(error, AccessDenied) else "Start it."
        findings.append(Finding("broker", Level.BAD, str(error), do))
    apis = await inspection.api_versions(settings) if reachable else {}
    findings += judge.versions(
        judge.Versions(sys.version_info[:3], importlib.metadata.version("aiokafka"), apis)
    )
    findings += judge.codecs(inspection.decodable(), settings.compression)
    ends: dict[int, int] | None = None
    count: int | None = None
    if reachable:
        found, count, ends = await _of_the_broker(settings, probe, role)
        findings += found
        findings += judge.views(own_views_url(settings), await _view(settings))
    findings += await _tables(settings, count, ends)
    return findings, not reachable


async def _of_the_broker(
    settings: Settings, probe: bool, role: Role
) -> tuple[list[Finding], int | None, dict[int, int] | None]:
    """Findings, the topics' partitions, and where the audit topic ends."""
    names = Topics(settings.topic_prefix)
    wanted = rights(role, names, settings.group_id)
    missing = await missing_rights(settings, wanted)
    findings = list(judge.authorizations(principal(settings), role, missing))
    mismatches = await _allowed("topics", check_topics(settings), findings)
    if mismatches is not None:
        findings += judge.topics(
            [judge.Mismatched(str(one), one.fatal, one.cure) for one in mismatches],
            len(list(names)),
        )
    described = partition_counts(settings, [name for name, _ in names], Operation.DESCRIBE)
    counts = await _allowed("partitions", described, findings) or {}
    distinct = {counts.get(name) for name in names.by_flow}
    count = distinct.pop() if len(distinct) == 1 else None
    if count is None:
        return findings, None, None
    members = await _allowed("workers", inspection.group_members(settings), findings)
    looking = _side_by_side(range(count), lambda partition: _standing(settings, partition))
    standing = await _allowed("lag", looking, findings)
    at_ms = now_ms()
    if standing is not None:
        findings += judge.lag([undecided for undecided, _ in standing], members, at_ms)
    everywhere = [(name, partition) for name in names.by_flow for partition in range(count)]
    open_transactions = await _allowed(
        "transactions", inspection.hanging(settings, everywhere), findings
    )
    if open_transactions is not None:
        findings += judge.transactions([judge.Open(*one) for one in open_transactions], at_ms)
    findings += await _waits(settings)
    newest = max((at for _, at in standing or () if at is not None), default=None)
    probed = None
    if probe:
        probed = await _probed(settings, findings)
    findings += judge.clock(newest, now_ms(), probed)
    ends = end_offsets(settings, names.audit, range(count))
    return findings, count, await _allowed("tables", ends, findings)


async def _allowed(check: str, work: Awaitable[T], findings: list[Finding]) -> T | None:
    """What `work` finds; None, and a finding, if a right is missing for it."""
    try:
        return await work
    except NotAuthorized as error:
        findings.append(judge.denied(check, str(error)))
        return None


async def _waits(settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    waiting = await _allowed("waits", list_waiting(settings, owner=None, limit=1), findings)
    if waiting is None:
        return findings
    for flow in waiting:
        findings += judge.waits(flow.id, due_ms(flow), now_ms())
    if not waiting:
        findings += judge.waits(None, None, now_ms())
    return findings


async def _view(settings: Settings) -> Mapping[str, Any] | str | None:
    """As `judge.views` takes it."""
    try:
        async with asking(own_views_url(settings), settings.views_read_token) as asked:
            if not await asked.are_of(settings):
                return None
            found: Mapping[str, Any] = (await asked.get("flows", limit=1))["view"]
    except NoViews as error:
        return str(error)
    return found


async def _probed(settings: Settings, findings: list[Finding]) -> tuple[int, int, int] | None:
    """As `_probe`; None, and a finding, if it was not answered."""
    try:
        probed = await _allowed("probe", _probe(settings), findings)
    except OutcomeTimeout as error:
        findings.append(
            Finding("probe", Level.BAD, str(error), "Is a worker running? See lag and /ready.")
        )
        return None
    if probed is not None:
        took = f"a dry run was answered in {probed[1] - probed[0]} ms"
        findings.append(Finding("probe", Level.GOOD, took))
    return probed


async def _standing(settings: Settings, partition: int) -> tuple[Undecided, int | None]:
    """What the partition has still to decide, and the newest append time seen on it."""
    names = Topics(settings.topic_prefix)
    place = PartitionConfig(partition, settings.partitions, names, settings.dedupe_window_ms)
    async with open_history(settings, partition, "doctor") as history:
        # Up to the stable end: what a transaction hides would be waited for.
        state = await _stable(history, names.state)
        try:
            cursor = await newest_cursor(place, history, {names.state: state})
        except NotAuthorized:
            raise
        except TaskflowError:
            cursor = None
        offsets, hidden, first_ms, newest_ms = 0, 0, None, None
        for topic in (names.commands, names.control):
            # Before the stable end: what is appended in between is not hidden.
            end = (await history.offset_range(topic)).end
            offset_range = await _stable(history, topic)
            hidden += max(end - offset_range.end, 0)
            decided = (
                getattr(cursor.position, topic.rpartition(".")[2]) if cursor else offset_range.start
            )
            decided = max(decided, offset_range.start)
            offsets += max(offset_range.end - decided, 0)
            last = await last_record(history, topic, offset_range)
            if last is None:
                continue
            newest_ms = max(newest_ms or 0, last.timestamp)
            if last.offset >= decided:
                async for records in history.read(topic, decided, last.offset + 1):
                    at = records[0].timestamp
                    first_ms = at if first_ms is None else min(first_ms, at)
                    break
        return Undecided(partition, offsets, first_ms, hidden), newest_ms


async def _stable(history: KafkaLogReader, topic: str) -> OffsetRange:
    return OffsetRange((await history.offset_range(topic)).start, await history.stable_end(topic))


async def _side_by_side(partitions: Iterable[int], work: Callable[[int], Awaitable[T]]) -> list[T]:
    turns = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(partition: int) -> T:
        async with turns:
            return await work(partition)

    return list(await asyncio.gather(*map(one, partitions)))


async def _probe(settings: Settings) -> tuple[int, int, int]:
    """Our time before and after a dry run, and the broker's when it was appended. Raises
    OutcomeTimeout."""
    command = {
        "kind": "update_state",
        "flow_id": str(uuid4()),
        "issued_by": "taskflow:doctor",
        "patch": {},
        "dry_run": True,
    }
    async with FlowClient(settings, expire=False) as client:
        before_ms = now_ms()
        outcome = await client.send(command, timeout_s=PROBE_TIMEOUT_S)
        return before_ms, now_ms(), parse_timestamp(outcome.at)


async def _tables(
    settings: Settings, count: int | None, ends: dict[int, int] | None
) -> list[Finding]:
    seen = []
    for partition, path in queries.tables(settings.state_dir, settings.topic_prefix).items():
        problem = await asyncio.to_thread(queries.check, path)
        progress = queries.progress(path) if problem is None else None
        behind = None
        if progress is not None and ends is not None and partition in ends:
            behind = ends[partition] - progress.audit
        seen.append(
            TableSeen(str(path), partition, progress and progress.partitions, problem, behind)
        )
    return list(judge.tables(seen, str(settings.state_dir), count, _free(settings.state_dir)))


def _free(state_dir: Path) -> int | None:
    """Of the disk that holds the tables, or would."""
    for path in (state_dir.absolute(), *state_dir.absolute().parents):
        if path.exists():
            return shutil.disk_usage(path).free
    return None


def _text(found: Finding) -> str:
    return f"{found.what}\n  → {found.do}" if found.do else found.what
