"""Decide each recorded command again, from the recorded state, and compare.

What the code decides in another way is noted, and then what is recorded is taken for what
happened: so each command is judged by itself, and a rule that was changed shows in the commands
that it touches and in no others.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Final

import orjson

from processor.contract.headers import chain_of, forwarded_from
from processor.contract.outcomes import Code, Verdict
from processor.contract.values import instant
from processor.engine.batch import Decoded, Outgoing, WriteSet
from processor.engine.codec import Readable, Record, decode
from processor.engine.command_handler import CommandHandler
from processor.engine.rows import Position
from processor.ops.replay.copies import Copies
from processor.ops.replay.differences import (
    ADDED,
    CHANGED,
    MISSING,
    Difference,
    Field,
    Findings,
    alike,
    fields_of,
    reworded,
)
from processor.ops.replay.recorded_history import (
    Beginning,
    Decided,
    RecordedPartition,
    RecordedTransaction,
    Rules,
)
from processor.ops.replay.snapshots import Snapshots
from processor.ops.replay.store import ReplayStore
from processor.ops.replay.wakes import Wakes
from processor.recovery.ledger_window import LATE_MAX_MS
from processor.recovery.snapshot_reader import ledger_entry_of

FORGET_EVERY: Final = 10_000
LAG_MAX_MS: Final = 86_400_000
"""How much older than the newest a command may be that comes next, for its topic lags behind the
other; a day of outcomes costs disk, and no more."""
NO_ORIGINAL: Final = "commands that were resends of commands from before the history begins"
REWORDED: Final = "sentences that say why a record is no command, which have other words now"
NO_DEAD_LETTER: Final = "dead letters that retention has taken"
_RESEND_MARKS: Final = (b'"verdict":"duplicate"', b'"code":"idempotency_conflict"')


async def replay(
    recorded: RecordedPartition,
    rules: Rules,
    partition: int,
    store: ReplayStore,
    findings: Findings,
    copies: Copies,
    *,
    on_read: Callable[[int], None] = lambda _: None,
) -> None:
    """Hold a partition's whole history against the code at hand. `on_read` is called with how
    many commands were compared since the last time."""
    beginning = await recorded.begin(store)
    findings.begins[partition] = _begins(beginning)
    check = Check(rules, partition, store, beginning, findings, copies)
    async for done in recorded.decided():
        check.take(done)
        on_read(len(done))
    state = Snapshots(rules.place(partition), store, findings)
    async for snapshots in recorded.snapshots():
        state.compare(snapshots)
    state.end()
    check.end(recorded.waking())


def _begins(beginning: Beginning) -> dict[str, Any]:
    if beginning.front_ms is None:
        return {"with": "the first command"}
    return {
        "with": "a fold of the audit",
        "at": instant(beginning.front_ms),
        "commands": beginning.commands,
        "control": beginning.control,
    }


class Check:
    """One partition's history against the code at hand."""

    def __init__(
        self,
        rules: Rules,
        partition: int,
        store: ReplayStore,
        beginning: Beginning,
        findings: Findings,
        copies: Copies,
    ) -> None:
        self._place = rules.place(partition)
        self._store = store
        self._findings = findings
        self._copies = copies
        self._next_event_id = beginning.next_event_id
        self._front_ms = beginning.front_ms
        self._commands = self._place.topics.commands
        self._newest_ms = self._count = 0
        self._wakes = Wakes(store, findings, self._wake_differs)
        if beginning.front_ms is not None:
            self._wakes.excuse_all()

    def take(self, done: RecordedTransaction) -> None:
        """Compare the commands of one transaction."""
        items: Sequence[Decoded] = [*map(decode, done.records)]
        self._observe(done.records, items)
        if self._front_ms is not None:
            done, items = self._known_resends(done, items)
        batch = self._handle(done, items)
        if batch.handled == len(items) and _all_alike(done, batch):
            self._keep(batch, items)
            for (kind, _, _), count in batch.tally.items():
                self._findings.commands[kind] += count
        else:
            asked_before = self._wakes.asked()
            for one, item in zip(done.each(), items, strict=True):
                self._one(one, item)
            self._wakes.settle(asked_before)
            self._findings.commands.update(map(_kind, items))
        self._wakes.passed()
        self._count_up(done)

    def end(self, waking: Sequence[str]) -> None:
        """`waking`: flows for which a wake stands behind the last command."""
        self._wakes.end(waking)

    # Deciding

    def _handle(self, done: RecordedTransaction, items: Sequence[Decoded]) -> WriteSet:
        unforwardable = frozenset(
            (done.records[n].topic, done.records[n].offset)
            for n in done.dead_letters
            if _internal_error(done.outcomes[n])
        )
        handler = CommandHandler(
            self._place,
            self._store.memory(items),
            Position(0, 0, self._next_event_id),
            next_row_number=1,
            unforwardable=unforwardable,
        )
        return handler.handle(items)

    def _keep(self, batch: WriteSet, items: Sequence[Decoded]) -> None:
        self._store.keep(batch.changes)
        self._next_event_id = batch.position.next_event_id
        for forward in batch.forwards:
            self._copies.made_one(forward)
        if batch.wakes:
            self._wakes.ask((flow_id for flow_id, _ in batch.wakes), items)

    def _one(self, one: Decided, item: Decoded) -> None:
        """Compare a command by itself, and go on from what is recorded of it."""
        batch = self._handle(RecordedTransaction.of([one]), [item])
        (outcome,) = batch.outcomes
        kind = _kind(item)
        why: list[Field] = [
            {"path": "(exception)", "now": repr(error)} for _, error in batch.faults
        ]
        # A list, for each is to be looked for.
        differs = [
            self._compare(one, kind, "outcome", one.outcome, outcome, why),
            self._compare_events(one, kind, batch.audit),
            self._compare_dead_letter(one, kind, batch.dead_letters),
        ]
        if not any(differs):
            self._keep(batch, [item])
            return
        self._findings.touched[kind] += 1
        self._follow(one, item)

    def _follow(self, one: Decided, item: Decoded) -> None:
        """What is recorded is what happened."""
        kind = _kind(item)
        for event in one.events:
            fact = orjson.loads(event.value or b"")
            try:
                self._store.fold(fact, chain_of(event.headers))
            except Exception as error:
                problem: Field = {
                    "path": "$",
                    "recorded": f"cannot be folded by this code: {error!r}",
                }
                self._differs(one.record, kind, "event", CHANGED, [problem], fact.get("flow_id"))
            self._next_event_id = fact["id"] + 1
        outcome = orjson.loads(one.outcome.value or b"")
        if (entry := ledger_entry_of(outcome)) is not None:
            self._store.keep_ledger([entry])
        if kind == "request_cancel" and outcome["flow_id"] is not None:
            self._wakes.excuse(outcome["flow_id"])

    # Comparing

    def _compare(
        self,
        one: Decided,
        kind: str,
        record: str,
        recorded: Outgoing,
        now: Outgoing,
        why: Sequence[Field] = (),
    ) -> bool:
        if alike(recorded, now):
            return False
        quarantined = _verdict(one.outcome) == Verdict.QUARANTINED
        if quarantined and not why and reworded(recorded, now):
            self._findings.not_compared[REWORDED] += 1
            return False
        self._differs(one.record, kind, record, CHANGED, [*fields_of(recorded, now), *why])
        return True

    def _compare_events(self, one: Decided, kind: str, now: Sequence[Outgoing]) -> bool:
        differs = False
        for recorded, made in zip_longest(one.events, now):
            if recorded is None:
                self._differs(one.record, kind, "event", ADDED, fields_of(_NONE, made))
            elif made is None:
                self._differs(one.record, kind, "event", MISSING, fields_of(recorded, _NONE))
            elif alike(recorded, made):
                continue
            else:
                # The chain of the second follows from the first, which was reported already.
                fields = fields_of(recorded, made, chain=not differs)
                if not fields:
                    continue
                self._differs(one.record, kind, "event", CHANGED, fields)
            differs = True
        return differs

    def _compare_dead_letter(self, one: Decided, kind: str, now: Sequence[Outgoing]) -> bool:
        recorded, made = one.dead_letter, now[0] if now else None
        if recorded is None and made is None:
            return False
        if recorded is None:
            assert made is not None
            if _verdict(one.outcome) == Verdict.QUARANTINED:
                self._findings.not_compared[NO_DEAD_LETTER] += 1
                return False
            self._differs(one.record, kind, "dead letter", ADDED, fields_of(_NONE, made))
        elif made is None:
            self._differs(one.record, kind, "dead letter", MISSING, fields_of(recorded, _NONE))
        else:
            return self._compare(one, kind, "dead letter", recorded, made)
        return True

    def _differs(
        self,
        source: Record,
        kind: str,
        record: str,
        what: str,
        fields: list[Field],
        flow_id: str | None = None,
    ) -> None:
        if flow_id is None and source.key is not None:
            flow_id = source.key.decode(errors="replace")
        place = (source.topic, source.partition, source.offset)
        self._findings.add(Difference(kind, record, what, *place, flow_id, fields))

    def _wake_differs(self, source: Record, what: str, flow_id: str) -> None:
        self._differs(source, "request_cancel", "wake", what, [], flow_id)
        self._findings.touched["request_cancel"] += 1

    # Resends, of which the history may not hold the first

    def _known_resends(
        self, done: RecordedTransaction, items: Sequence[Decoded]
    ) -> tuple[RecordedTransaction, Sequence[Decoded]]:
        """Without those of which it does not."""
        assert self._front_ms is not None
        newest_ms = max(record.timestamp for record in done.records)
        if newest_ms - self._place.dedupe_window_ms - LATE_MAX_MS > self._front_ms:
            self._front_ms = None
            return done, items
        kept = []
        firsts: set[bytes] = set()
        for one, item in zip(done.each(), items, strict=True):
            if isinstance(item, Readable):
                key = item.ledger_key
                known = key in firsts or self._store.ledger_entry(key) is not None
                value = one.outcome.value or b""
                if not known and any(mark in value for mark in _RESEND_MARKS):
                    outcome = orjson.loads(value)
                    if outcome["verdict"] == "duplicate" or outcome["code"] in _CONFLICT:
                        self._findings.not_compared[NO_ORIGINAL] += 1
                        continue
                firsts.add(key)
            kept.append((one, item))
        return RecordedTransaction.of(one for one, _ in kept), [item for _, item in kept]

    # What a record says besides

    def _observe(self, records: Sequence[Record], items: Sequence[Decoded]) -> None:
        commands = self._commands
        for record, item in zip(records, items, strict=True):
            if record.headers and (origin := forwarded_from(record.headers)) is not None:
                self._copies.found_one(record, origin)
            if record.topic != commands:
                self._wakes.observe(record, item)

    def _count_up(self, done: RecordedTransaction) -> None:
        records = self._findings.records
        records["outcomes"] += len(done.outcomes)
        records["events"] += len(done.events)
        records["dead_letters"] += len(done.dead_letters)
        self._count += len(done)
        if done and self._count >= FORGET_EVERY:
            self._count = 0
            self._newest_ms = max(self._newest_ms, done.records[-1].timestamp)
            self._store.forget(self._newest_ms - self._place.dedupe_window_ms - LAG_MAX_MS)


_NONE: Final = Outgoing(None, None, ())
_CONFLICT: Final = frozenset({Code.IDEMPOTENCY_CONFLICT})


def _all_alike(done: RecordedTransaction, batch: WriteSet) -> bool:
    return (
        _alike(done.outcomes, batch.outcomes)
        and _alike(done.events, batch.audit)
        and _alike([*done.dead_letters.values()], batch.dead_letters)
    )


def _alike(recorded: Sequence[Outgoing], now: Sequence[Outgoing]) -> bool:
    """Whether all records are, in their order."""
    # From topics, headers are in sequences of another type.
    return recorded == now or (len(recorded) == len(now) and all(map(alike, recorded, now)))


def _kind(item: Decoded) -> str:
    return item.command.kind if isinstance(item, Readable) else item.kind or "unknown"


def _verdict(outcome: Outgoing) -> str:
    return str(orjson.loads(outcome.value or b"")["verdict"])


def _internal_error(outcome: Outgoing) -> bool:
    return b'"code":"internal_error"' in (outcome.value or b"")
