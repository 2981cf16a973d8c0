"""Recorded commands through the code at hand, each from where the record says that things stood.

What the code decides in another way is noted, and then what is recorded is taken for what
happened: so each command is judged by itself, and a rule that was changed shows in the commands
that it touches and in no others.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Final

import orjson

from processor.batch import Batch, Decoded, Outgoing, snapshot_of
from processor.codec import Readable, decode
from processor.domain.waits import AT_ONCE_MS, due_ms
from processor.handler import Handler
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
)
from processor.ops.replay.recorded import (
    Beginning,
    Decided,
    RecordedPartition,
    Rules,
    Snapshot,
)
from processor.ops.replay.store import Store
from processor.recovery import LATE_MAX_MS, answer_of
from processor.rows import Position
from processor.timers import ACTOR
from schemas.dead_letters import FORWARDED_FROM
from schemas.events import CHAIN_HEADER
from schemas.flow import Flow
from schemas.outcomes import Code, Verdict
from schemas.values import instant

STATE: Final = "(state)"
"""In place of a command's kind, where it is not known."""
FORGET_EVERY: Final = 10_000
LAG_MAX_MS: Final = 86_400_000
"""How much older than the newest a command may be that comes next, for its topic lags behind the
other; a day of answers costs disk, and no more."""
NO_ORIGINAL: Final = (
    "commands that were answered as resends of what was answered before the history begins"
)
NO_LETTER: Final = "dead letters that retention has taken"
_GIVEN_ANSWERS: Final = (b'"verdict":"duplicate"', b'"code":"idempotency_conflict"')


async def replay(
    recorded: RecordedPartition,
    rules: Rules,
    partition: int,
    store: Store,
    findings: Findings,
    copies: Copies,
    *,
    heard: Callable[[int], None] = lambda _: None,
) -> None:
    """Hold a partition's whole history against the code at hand. `heard` is told how many commands
    were compared since the last time."""
    beginning = await recorded.begin(store)
    findings.begins[partition] = _begins(beginning)
    check = Check(rules, partition, store, beginning, findings, copies)
    async for decided in recorded.decided():
        check.take(decided)
        heard(len(decided))
    async for snapshots in recorded.snapshots():
        check.compare_state(snapshots)
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
        store: Store,
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
        self._snapshots: dict[bytes, Difference] = {}
        self._asked: dict[str, Decided] = {}
        """Flows for which the code at hand sends a wake that did not come yet, with the request."""
        self._excused: set[str] = set()
        """Flows whose wake it need not have sent: of before, or after a difference."""
        if beginning.front_ms is not None:
            self._excused = {
                known.row.flow.id for known in store.known() if _is_to_be_woken(known.row.flow)
            }

    def take(self, decided: Sequence[Decided]) -> None:
        """Compare the commands of one transaction."""
        items: Sequence[Decoded] = [decode(one.record) for one in decided]
        for one, item in zip(decided, items, strict=True):
            self._hear(one, item)
        if self._front_ms is not None:
            decided, items = self._known_resends(decided, items)
        batch = self._handle(decided, items)
        if batch.handled == len(items) and self._all_alike(decided, batch):
            self._keep(batch)
            asked = [flow_id for flow_id, _ in batch.wakes]
            if asked:
                self._ask(asked, decided, items)
        else:
            asked_before = self._asked.keys() | ()
            for one, item in zip(decided, items, strict=True):
                self._one(one, item)
            # A transaction sends a wake only for what still waits when it ends.
            for flow_id in self._asked.keys() - asked_before:
                if not self._waits_for_wake(flow_id):
                    del self._asked[flow_id]
        self._excused = {f for f in self._excused if self._waits_for_wake(f)}
        self._count_up(decided, items)

    def compare_state(self, snapshots: Sequence[Snapshot]) -> None:
        """What `state` says, in its order, after the last command: what became of the same events
        must be the same. Older and newer snapshots are passed over."""
        for key, value in snapshots:
            flow_id, _, run_id = key.decode().partition("/")
            known = self._store.known_flow(flow_id)
            if known is None:
                continue
            if not run_id:
                if orjson.loads(value)["last_event_id"] == known.row.last_event_id:
                    self._compare_snapshot(flow_id, key, value, snapshot_of(known.row))
            elif (step := known.steps.get(run_id)) is not None:
                at = orjson.loads(value)["step"]["updated_at"]
                if at == step.step.updated_at:
                    self._compare_snapshot(flow_id, key, value, b'{"step":%b}' % step.doc)
                elif at > step.step.updated_at:
                    self._snapshots.pop(key, None)

    def _compare_snapshot(self, flow_id: str, key: bytes, recorded: bytes, now: bytes) -> None:
        self._findings.records["snapshots"] += 1
        if recorded == now:
            self._snapshots.pop(key, None)
            return
        # A step may have changed twice in a millisecond: its last snapshot counts.
        topic, partition = self._place.topics.state, self._place.partition
        fields = fields_of(Outgoing(key, recorded, ()), Outgoing(key, now, ()))
        self._snapshots[key] = Difference(
            *(STATE, "snapshot", CHANGED, topic, partition, -1, flow_id, fields)
        )

    def end(self, waking: Sequence[str]) -> None:
        """`waking`: flows for which a wake stands behind the last command."""
        for found in self._snapshots.values():
            self._findings.add(found)
            self._findings.touched[STATE] += 1
        for flow_id, request in self._asked.items():
            if flow_id not in waking:
                self._differs(request, "request_cancel", "wake", ADDED, [], flow_id)
                self._findings.touched["request_cancel"] += 1
            else:
                self._findings.records["wakes"] += 1

    # Deciding

    def _handle(self, decided: Sequence[Decided], items: Sequence[Decoded]) -> Batch:
        letters = [one for one in decided if one.letter is not None]
        unforwardable = frozenset(
            (one.record.topic, one.record.offset) for one in letters if _internal_error(one.outcome)
        )
        handler = Handler(
            self._place,
            self._store.memory(items),
            Position(0, 0, self._next_event_id),
            next_number=1,
            unforwardable=unforwardable,
        )
        return handler.handle(items)

    def _keep(self, batch: Batch) -> None:
        self._store.keep(batch.changes)
        self._next_event_id = batch.position.next_event_id
        for forward in batch.forwards:
            self._copies.made_one(forward)

    def _all_alike(self, decided: Sequence[Decided], batch: Batch) -> bool:
        return (
            _alike([one.outcome for one in decided], batch.outcomes)
            and _alike([event for one in decided for event in one.events], batch.audit)
            and _alike([one.letter for one in decided if one.letter], batch.dead_letters)
        )

    def _one(self, one: Decided, item: Decoded) -> None:
        """Compare a command by itself, and go on from what is recorded of it."""
        batch = self._handle([one], [item])
        (outcome,) = batch.outcomes
        kind = _kind(item)
        why: list[Field] = [
            {"path": "(exception)", "now": repr(error)} for _, error in batch.faults
        ]
        # A list, for each is to be looked for.
        differs = [
            self._compare(one, kind, "outcome", one.outcome, outcome, why),
            self._compare_events(one, kind, batch.audit),
            self._compare_letter(one, kind, batch.dead_letters),
        ]
        if not any(differs):
            self._keep(batch)
            if batch.wakes:
                self._ask([flow_id for flow_id, _ in batch.wakes], [one], [item])
            return
        self._findings.touched[kind] += 1
        self._follow(one, item)

    def _follow(self, one: Decided, item: Decoded) -> None:
        """What is recorded is what happened."""
        kind = _kind(item)
        for event in one.events:
            fact = orjson.loads(event.value or b"")
            try:
                self._store.fold(fact, dict(event.headers).get(CHAIN_HEADER, b""))
            except Exception as error:
                problem: Field = {
                    "path": "$",
                    "recorded": f"cannot be folded by this code: {error!r}",
                }
                self._differs(one, kind, "event", CHANGED, [problem], fact.get("flow_id"))
            self._next_event_id = fact["id"] + 1
        outcome = orjson.loads(one.outcome.value or b"")
        if (answer := answer_of(outcome)) is not None:
            self._store.remember([answer])
        if kind == "request_cancel" and outcome["flow_id"] is not None:
            self._excused.add(outcome["flow_id"])

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
        self._differs(one, kind, record, CHANGED, [*fields_of(recorded, now), *why])
        return True

    def _compare_events(self, one: Decided, kind: str, now: Sequence[Outgoing]) -> bool:
        differs = False
        for recorded, made in zip_longest(one.events, now):
            if recorded is None:
                self._differs(one, kind, "event", ADDED, fields_of(_NONE, made))
            elif made is None:
                self._differs(one, kind, "event", MISSING, fields_of(recorded, _NONE))
            elif alike(recorded, made):
                continue
            else:
                # The chain of the second follows from the first, which was told already.
                fields = fields_of(recorded, made, chain=not differs)
                if not fields:
                    continue
                self._differs(one, kind, "event", CHANGED, fields)
            differs = True
        return differs

    def _compare_letter(self, one: Decided, kind: str, now: Sequence[Outgoing]) -> bool:
        recorded, made = one.letter, now[0] if now else None
        if recorded is None and made is None:
            return False
        if recorded is None:
            assert made is not None
            if _verdict(one.outcome) == Verdict.QUARANTINED:
                self._findings.not_compared[NO_LETTER] += 1
                return False
            self._differs(one, kind, "dead letter", ADDED, fields_of(_NONE, made))
        elif made is None:
            self._differs(one, kind, "dead letter", MISSING, fields_of(recorded, _NONE))
        else:
            return self._compare(one, kind, "dead letter", recorded, made)
        return True

    def _differs(
        self,
        one: Decided,
        kind: str,
        record: str,
        what: str,
        fields: list[Field],
        flow_id: str | None = None,
    ) -> None:
        source = one.record
        if flow_id is None and source.key is not None:
            flow_id = source.key.decode(errors="replace")
        place = (source.topic, source.partition, source.offset)
        self._findings.add(Difference(kind, record, what, *place, flow_id, fields))

    # Resends, of which the history may not hold the first

    def _known_resends(
        self, decided: Sequence[Decided], items: Sequence[Decoded]
    ) -> tuple[Sequence[Decided], Sequence[Decoded]]:
        """Without those of which it does not."""
        assert self._front_ms is not None
        newest_ms = max(one.record.timestamp for one in decided)
        if newest_ms - self._place.dedupe_window_ms - LATE_MAX_MS > self._front_ms:
            self._front_ms = None
            return decided, items
        kept = []
        firsts: set[bytes] = set()
        for one, item in zip(decided, items, strict=True):
            if isinstance(item, Readable):
                key = item.ledger_key
                known = key in firsts or self._store.answer(key) is not None
                value = one.outcome.value or b""
                if not known and any(mark in value for mark in _GIVEN_ANSWERS):
                    outcome = orjson.loads(value)
                    if outcome["verdict"] == "duplicate" or outcome["code"] in _CONFLICT:
                        self._findings.not_compared[NO_ORIGINAL] += 1
                        continue
                firsts.add(key)
            kept.append((one, item))
        return [one for one, _ in kept], [item for _, item in kept]

    # Wakes

    def _hear(self, one: Decided, item: Decoded) -> None:
        record = one.record
        for name, value in record.headers:
            if name == FORWARDED_FROM:
                self._copies.found_one(record, value)
        if record.topic == self._commands or not isinstance(item, Readable):
            return
        command = item.command
        if command.kind != "wake" or command.issued_by != ACTOR:
            return
        flow_id = command.flow_id
        if self._asked.pop(flow_id, None) is not None:
            self._findings.records["wakes"] += 1
        elif self._waits_for_wake(flow_id) and flow_id not in self._excused:
            self._differs(one, "request_cancel", "wake", MISSING, [], flow_id)
            self._findings.touched["request_cancel"] += 1

    def _ask(
        self, asked: Sequence[str], decided: Sequence[Decided], items: Sequence[Decoded]
    ) -> None:
        for flow_id in asked:
            if not self._waits_for_wake(flow_id):
                continue
            self._asked[flow_id] = next(
                one
                for one, item in zip(decided, items, strict=True)
                if isinstance(item, Readable) and item.command.flow_id == flow_id
            )

    def _waits_for_wake(self, flow_id: str) -> bool:
        row = self._store.flow(flow_id)
        return row is not None and _is_to_be_woken(row.flow)

    # Counting

    def _count_up(self, decided: Sequence[Decided], items: Sequence[Decoded]) -> None:
        records = self._findings.records
        self._findings.commands.update(map(_kind, items))
        records["outcomes"] += len(decided)
        records["events"] += sum(len(one.events) for one in decided)
        records["dead_letters"] += sum(one.letter is not None for one in decided)
        self._count += len(decided)
        if decided and self._count >= FORGET_EVERY:
            self._count = 0
            self._newest_ms = max(self._newest_ms, decided[-1].record.timestamp)
            self._store.forget(self._newest_ms - self._place.dedupe_window_ms - LAG_MAX_MS)


_NONE: Final = Outgoing(None, None, ())
_CONFLICT: Final = frozenset({Code.IDEMPOTENCY_CONFLICT})


def _alike(recorded: Sequence[Outgoing], now: Sequence[Outgoing]) -> bool:
    """Whether all records are, in their order."""
    if [one[:2] for one in recorded] != [one[:2] for one in now]:
        return False
    for (_, _, one), (_, _, other) in zip(recorded, now, strict=True):
        if one != other and [*one] != [*other]:
            return False
    return True


def _kind(item: Decoded) -> str:
    return item.command.kind if isinstance(item, Readable) else item.kind or "unknown"


def _is_to_be_woken(flow: Flow) -> bool:
    """Whether it waits and is to be cancelled."""
    return due_ms(flow) == AT_ONCE_MS


def _verdict(outcome: Outgoing) -> str:
    return str(orjson.loads(outcome.value or b"")["verdict"])


def _internal_error(outcome: Outgoing) -> bool:
    return b'"code":"internal_error"' in (outcome.value or b"")
