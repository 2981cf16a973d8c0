"""What verify looks at and what it leaves out: histories of every kind, parts of them, what
retention has taken, and what lies on several partitions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from processor.domain.transitions import Authority
from processor.engine.partitioner import partition_of
from processor.ops.verify.partition import BEFORE_SINCE_MS
from processor.ops.verify.ports import Watcher
from tests.support.builders import FLOW_ID, HOUR_MS, document
from tests.support.json_values import json_of
from tests.support.recorded_deployment import Recorded, edit, kinds, violations
from tests.support.strategies import lives
from tests.unit.ops.verify.histories import ABOUT, ONE, TWO
from tests.unit.ops.verify.test_verify import CLEAN, THREE, snapshot

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[4] / "schemas" / "vectors" / "conformance.jsonl")
    .read_text("utf-8")
    .splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_every_case_of_the_contract_is_clean(case: Any) -> None:
    history = Recorded()
    for sent in case["commands"]:
        history.send((sent["topic"], sent["value"]), at_ms=sent["at_ms"])
    history.keep_tables()

    report = await history.verify()

    assert report.ok, violations(report)
    assert report.counts["outcomes"] == len(case["commands"]) + history.wakes


@drawn(st.lists(lives(), min_size=1, max_size=3), st.randoms(use_true_random=False))
async def test_whatever_is_sent_to_flows_is_clean(some: Any, random: Any) -> None:
    """Lives of flows, shuffled into each other, sent in batches, now and then twice."""
    sources = {Authority.OWNER: "commands", Authority.OPERATOR: "control"}
    left = []
    for number, life in enumerate(some):
        flow_id = str(uuid5(UUID(FLOW_ID), str(number)))
        left.append(
            [
                (sources[authority], {**command.model_dump(mode="json"), "flow_id": flow_id})
                for command, _, authority in life
            ]
        )
    history = Recorded(window_ms=5_000)
    while any(left):
        batch = []
        for _ in range(random.randint(1, 4)):
            life = random.choice(left)
            if life:
                batch.append(life.pop(0) if random.random() < 0.9 else life[0])
        history.send(*batch)
        if random.random() < 0.1:
            history.keep_tables()
    history.keep_tables()

    report = await history.verify()

    assert report.ok, violations(report)


def on_partition(number: Any, partitions: Any, *, salt: str = "") -> Any:
    """A flow id whose home it is."""
    ids = (str(uuid5(UUID(FLOW_ID), f"{salt}{n}")) for n in range(1_000))
    return next(i for i in ids if partition_of(i.encode(), partitions) == number)


def on_two_partitions() -> Recorded:
    history = Recorded(partitions=2)
    here, there = on_partition(0, 2), on_partition(1, 2)
    history.send(("commands", document("create_managed", flow_id=here, **ABOUT)))
    history.send(("commands", document("create_managed", flow_id=there, **ABOUT)), partition=0)
    history.send(("commands", document("start_running", flow_id=there)))
    history.send(("commands", document("start_running", flow_id=here)), partition=1)
    history.keep_tables()
    return history


async def test_what_was_forwarded_is_clean_and_has_its_copy() -> None:
    history = on_two_partitions()

    report = await history.verify()

    assert report.ok, violations(report)
    verdicts = [json_of(r)["verdict"] for r in history.of("outcomes")]
    assert verdicts.count("forwarded") == 1
    assert report.counts["flows"] == 2


async def test_a_copy_that_was_lost_or_changed_is_found() -> None:
    lost, changed = on_two_partitions(), on_two_partitions()
    for history in (lost, changed):
        (index,) = (i for i, r in enumerate(history.of("commands", 1)) if len(r.headers) == 3)
        record = history.of("commands", 1)[index]
        history.of("commands", 1)[index] = replace(
            record, headers=(*record.headers[: 2 if history is lost else 1], *record.headers[3:])
        )
    records = changed.of("commands", 1)
    records[:] = [
        replace(r, headers=(*r.headers[:1], ("taskflow-forwarded-from", b"taskflow.commands/0/1")))
        if len(r.headers) == 1
        else r
        for r in records
    ]

    assert ("I9", "forward_without_copy") in kinds(await lost.verify())
    assert ("I9", "forward_differs") in kinds(await changed.verify())


async def test_whoever_says_that_his_record_is_a_copy_is_taken_for_it() -> None:
    history = on_two_partitions()
    claims = [
        history.append("commands", 0, key, value, [("taskflow-forwarded-from", origin)])
        for key in (None, b"", b"\xff")
        for value in (None, b"", b"{}")
        for origin in (None, b"", b"\xff", b"taskflow.commands/0/0")
    ]
    history.commit(0, claims)
    history.keep_tables()

    report = await history.verify()

    assert len(history.of("deadletters")) == len(claims)
    assert report.ok, violations(report)


async def test_a_copy_that_comes_while_other_partitions_are_read_counts() -> None:
    history = on_two_partitions()
    names = ("commands", "audit", "outcomes", "state")
    before = {name: [*history.of(name, 0)] for name in names}
    ends = {name: history.end(name, 0) for name in names}
    to_come = document("create_managed", flow_id=on_partition(0, 2, salt="x"), **ABOUT)
    history.send(("commands", to_come), partition=1)
    after = {name: history.of(name, 0) for name in names}
    for name in names:
        history.records[name, 0] = before[name]
        history.ends[name, 0] = (ends[name], ends[name])
    history.tables.clear()
    assert kinds(await history.verify(at_rest=False)) == {("I9", "forward_without_copy")}

    class Meanwhile(Watcher):
        def at(self, what: Any) -> None:
            if what.startswith("partition 1:"):
                history.ends.clear()
                history.records |= {(name, 0): after[name] for name in names}

    report = await history.verify(Meanwhile(), at_rest=False)
    assert report.ok, violations(report)


async def test_flows_and_events_on_a_foreign_partition_are_found() -> None:
    history = on_two_partitions()
    for name in ("audit", "state", "outcomes", "commands", "control", "deadletters"):
        ours, theirs = history.of(name, 0), history.of(name, 1)
        history.records[name, 0], history.records[name, 1] = theirs, ours

    found = kinds(await history.verify())

    assert {("I12", "event_misplaced"), ("I12", "state_misplaced")} <= found
    assert ("I12", "cursor_misplaced") in found


# One flow


async def test_one_flow_alone_has_its_whole_story_and_nobody_elses() -> None:
    history = CLEAN.copy()
    index = snapshot(ONE)
    history.of("state")[index] = edit(history.of("state")[index], flow={})

    theirs = await history.verify(flow_id=THREE)
    mine = await history.verify(flow_id=ONE)

    assert theirs.ok, violations(theirs)
    assert theirs.counts["flows"] == 1
    assert theirs.checked["I7"] == 9 + 2  # its events, its tail on state and in the table
    assert {flow.flow_id for flow in mine.first.values()} == {ONE}
    assert ("I5", "state_flow_differs") in kinds(mine)


async def test_one_flow_is_looked_for_on_its_partition_only() -> None:
    history = on_two_partitions()
    report = await history.verify(flow_id=on_partition(1, 2))

    assert report.ok, violations(report)
    assert report.partitions == [1]
    assert report.tables == ["table-1"]


# Since a time


def two_days() -> tuple[Recorded, int]:
    """Yesterday ONE and TWO were created and ONE moved; today ONE moves on, THREE is created and
    TWO pruned. And the time between."""
    history = Recorded()
    history.send(
        ("commands", document("create_mirrored", flow_id=ONE, **ABOUT)),
        ("commands", document("create_mirrored", flow_id=TWO, **ABOUT)),
        ("commands", document("finish", flow_id=TWO)),
    )
    history.send(("commands", document("set_waiting", flow_id=ONE, wait={"kind": "manual"})))
    today = history.now + 24 * HOUR_MS
    step = {"run_id": "r", "task": "t", "status": "running"}
    history.send(
        ("commands", document("resume", flow_id=ONE, state_patch={"x": 1})), at_ms=today + 1
    )
    history.send(
        ("control", document("prune", flow_id=TWO)),
        ("commands", document("create_managed", flow_id=THREE, **ABOUT)),
        ("commands", document("record_step_observation", flow_id=ONE, **step)),
        ("commands", document("request_cancel", flow_id=ONE)),
    )
    history.keep_tables()
    return history, today


async def test_since_a_time_only_what_came_later_is_read() -> None:
    history, today = two_days()

    report = await history.verify(since_ms=today)

    assert report.ok, violations(report)
    assert report.counts["outcomes"] == 5
    assert report.tables == ["table-0"]
    assert any("taken as given" in sentence for sentence in report.not_covered)


@pytest.mark.parametrize("since_ms", range(1, 4 * 1_000 + 2, 500))
async def test_since_any_moment_a_clean_history_is_clean(since_ms: int) -> None:
    history = CLEAN.copy()
    history_start = history.of("commands")[0].timestamp - 500

    report = await history.verify(since_ms=history_start + since_ms)

    assert report.ok, violations(report)


async def test_since_after_everything_there_is_nothing_to_be_found() -> None:
    history, today = two_days()
    report = await history.verify(since_ms=today + BEFORE_SINCE_MS + HOUR_MS)

    assert report.ok, violations(report)
    assert report.counts["outcomes"] == 0


@pytest.mark.parametrize(
    ("topic", "index", "fields", "found"),
    [
        ("audit", 6, {"revision": 9}, ("I3", "outcome_revision")),
        ("audit", -1, {"revision": 9}, ("I3", "event_revision")),
        ("audit", 7, {"actor": "x"}, ("I9", "event_actor")),
        ("audit", 8, {"payload_json": {}}, ("I9", "event_payload")),
        ("audit", -1, {"payload_json": {"x": 1}}, ("I7", "chain_broken")),
        ("state", -4, {"last_event_id": 5}, ("I7", "state_tail")),
        ("outcomes", -1, {"revision": 1}, ("I3", "outcome_revision")),
    ],
)
async def test_since_a_time_what_was_planted_later_is_found(
    topic: str, index: int, fields: Any, found: Any
) -> None:
    history, today = two_days()
    records = history.of(topic)
    if topic == "state":
        index = next(i for i, r in reversed([*enumerate(records)]) if r.key == ONE.encode())
    records[index] = edit(records[index], **fields)

    report = await history.verify(since_ms=today)

    assert found in kinds(report), violations(report)


async def test_since_a_time_a_snapshot_that_outlived_its_prune_is_found() -> None:
    history, today = two_days()
    records = history.of("state")
    (index,) = (i for i, r in enumerate(records) if r.key == TWO.encode() and r.value is None)
    old = next(r for r in records if r.key == TWO.encode() and r.value is not None)
    records[index] = replace(records[index], value=old.value)

    assert kinds(await history.verify(since_ms=today)) == {
        ("I5", "state_flow_extra"),
        ("I5", "transaction_differs"),
    }


# Retention


async def test_what_retention_took_is_told_and_is_no_violation() -> None:
    history = CLEAN.copy()
    for name, start in (("commands", 20), ("control", 2), ("outcomes", 16), ("deadletters", 3)):
        records = history.of(name)
        history.starts[name, 0] = records[start].offset
        del records[:start]

    report = await history.verify()

    assert report.ok, violations(report)
    assert report.counts["outcomes_without_kept_command"] > 0
    assert report.counts["events_without_kept_outcome"] > 0
    begun = [s for s in report.not_covered if "begins at offset" in s]
    assert len(begun) == 3


async def test_the_fold_is_whole_although_outcomes_are_gone() -> None:
    history = CLEAN.copy()
    records = history.of("outcomes")
    history.starts["outcomes", 0] = records[-2].offset
    del records[:-2]
    index = snapshot(ONE)
    history.of("state")[index] = edit(history.of("state")[index], chain="00" * 16)

    assert kinds(await history.verify()) == {("I5", "transaction_differs"), ("I7", "state_tail")}


async def test_an_audit_without_its_front_is_followed_from_where_it_begins() -> None:
    history = CLEAN.copy()
    records = history.of("audit")
    history.starts["audit", 0] = records[5].offset
    del records[:5]
    outcomes = history.of("outcomes")
    named = [i for i, r in enumerate(outcomes) if json_of(r)["event_ids"]]
    history.starts["outcomes", 0] = outcomes[named[9]].offset
    del outcomes[: named[9]]

    report = await history.verify()

    assert report.ok, violations(report)
    assert any("taken as given" in sentence for sentence in report.not_covered)


async def test_a_compacted_state_is_clean() -> None:
    history = CLEAN.copy()
    newest = {record.key: record.offset for record in history.of("state")}
    history.records["state", 0] = [
        r for r in history.of("state") if newest[r.key] == r.offset and r.value is not None
    ]

    report = await history.verify()

    assert report.ok, violations(report)


# Tables


async def test_a_table_that_lags_is_compared_where_it_stands() -> None:
    history, _ = two_days()
    history.keep_tables()
    table = history.tables[0]
    history.send(("commands", document("cancel", flow_id=ONE)))

    report = await history.verify()
    assert report.ok, violations(report)
    assert report.tables == [table.position.path]

    table.flows[0] = table.flows[0]._replace(doc="{}")
    assert ("I5", "table_flow_differs") in kinds(await history.verify())


async def test_a_table_that_is_just_being_filled_is_not_compared() -> None:
    history, _ = two_days()
    table = history.tables[0]
    table.position = table.position._replace(restored=False)
    table.flows.clear()

    report = await history.verify()

    assert report.ok
    assert "table-0 is not restored yet." in report.not_covered
