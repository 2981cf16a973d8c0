"""The checker is checked: a clean world has no violations, and each planted defect turns it red."""

import copy
import json
from dataclasses import replace

import pytest

from tests.support import builders as given
from tests.support.checker import partition_of, violations
from tests.support.observed_deployment import Seen, TableSeen, World
from tests.support.partition import Appended, Partition

PREFIX = "taskflow"
ONE, TWO = "2fce7035-2e57-5ac8-98cf-336ebef3eea6", "6b81b0e0-d1f3-550c-af2c-c345b5a4c276"
LATER = given.MORNING + 60_000
ABOUT = {"controller_id": "c", "goal": "g", "requester_origin": "r"}


def a_days_work():
    """Commands of two flows on both topics, resends, refusals and rubbish, in batches."""
    again = given.document("start_running", flow_id=ONE)
    odd = given.document("update_state", flow_id=TWO, patch=None, next_step="é😀", dry_run=None)
    step = {"run_id": "r/1", "task": "t", "status": "running", "child_session_key": "s"}
    return [
        [
            ("commands", given.document("create_managed", flow_id=ONE, **ABOUT)),
            ("commands", again),
            ("commands", again),
            ("commands", {**again, "issued_by": "another"}),
            ("commands", b"\xff"),
            ("control", None),
            ("commands", {"kind": "dance", "flow_id": ONE}),
        ],
        [
            ("commands", given.document("create_mirrored", flow_id=TWO, **ABOUT, state_json=[1.0])),
            ("commands", odd),
            ("commands", given.document("record_step_observation", flow_id=TWO, **step)),
            ("commands", given.document("start_running", flow_id=TWO)),
            ("commands", given.document("finish", flow_id=ONE, dry_run=True)),
            ("commands", b'"' + b"x" * 600_000 + b'"'),
        ],
        [
            ("commands", given.document("set_waiting", flow_id=TWO, wait=given.manual())),
            ("commands", given.document("request_cancel", flow_id=TWO)),
            ("commands", given.document("resume", flow_id=TWO)),
            ("control", given.document("wake", flow_id=TWO)),
            ("commands", given.document("fail", flow_id=ONE, reason="why")),
        ],
        [
            ("control", given.document("prune", flow_id=ONE)),
            ("control", given.document("prune", flow_id=TWO)),
            ("commands", given.document("create_managed", flow_id=ONE, **ABOUT)),
            ("commands", given.document("update_state", flow_id=ONE, patch={"x": 0.00001})),
            ("commands", given.document("cancel", flow_id=TWO)),
        ],
    ]


def a_night():
    """A flow that waits for the morning, one that is asked to cancel, and one that waits on."""
    waits = given.document("create_mirrored", flow_id=ONE, **ABOUT)
    asked = given.document("create_mirrored", flow_id=TWO, **ABOUT)
    timer = given.timer(given.MORNING + 5_000)
    return [
        [
            ("commands", waits),
            ("commands", asked),
            ("commands", given.document("set_waiting", flow_id=ONE, wait=timer)),
            ("commands", given.document("set_waiting", flow_id=TWO, wait=given.manual())),
        ],
        [("commands", given.document("request_cancel", flow_id=TWO))],
        [
            ("control", given.document("wake", flow_id=TWO)),
            ("control", given.document("wake", flow_id=ONE)),
        ],
        [
            ("commands", given.document("set_waiting", flow_id=ONE, wait=given.timer(LATER))),
        ],
    ]


def record_of(topic, offset, timestamp, body):
    if isinstance(body, dict):
        key, value = str(body["flow_id"]).encode(), json.dumps(body, ensure_ascii=False).encode()
    else:
        key, value = b"k", body
    headers = (("traceparent", b"00-1"), ("mine", b""))
    return Appended(f"{PREFIX}.{topic}", 0, offset, timestamp, key, value, headers)


def a_world(batches):
    world, partition, now = World.empty(PREFIX, 1), Partition(), given.MORNING
    offsets = {"commands": 0, "control": 0}
    for batch in batches:
        records = []
        for topic, body in batch:
            now += 1000
            records.append(record_of(topic, offsets[topic], now, body))
            offsets[topic] += 1
        for r in records:
            world.put(
                Seen(r.topic.split(".")[1], 0, r.offset, r.timestamp, r.key, r.value, r.headers)
            )
        written = partition.handle(records)
        assert not written.faults
        for topic, some in (
            ("audit", written.audit),
            ("outcomes", written.outcomes),
            ("state", written.state),
            ("deadletters", written.dead_letters),
        ):
            for out in some:
                offset = len(world.records[topic][0])
                world.put(Seen(topic, 0, offset, now, out.key, out.value, tuple(out.headers)))
    at = partition.position
    world.tables.append(
        TableSeen(
            "a table",
            0,
            at.commands,
            at.control,
            at.next_event_id,
            True,
            {f: (r.doc.decode(), r.last_event_id, r.chain) for f, r in partition.flows.items()},
            {at: row.doc.decode() for at, row in partition.steps.items()},
        )
    )
    return world


CLEAN = a_world(a_days_work())
NIGHT = a_world(a_night())


@pytest.fixture
def world():
    return copy.deepcopy(CLEAN)


def test_a_clean_world_has_no_violations(world):
    assert violations(world) == []
    assert len(world.records["outcomes"][0]) == 23
    verdicts = {json.loads(r.value)["verdict"] for r in world.all("outcomes")}
    assert verdicts == {"accepted", "rejected", "duplicate", "quarantined"}
    assert world.tables[0].flows


def edit(record, **fields):
    return replace(record, value=json.dumps({**json.loads(record.value), **fields}).encode())


def of(world, topic):
    return world.records[topic][0]


def drop(topic, index):
    return lambda world: of(world, topic).pop(index)


def double(topic, index):
    return lambda world: of(world, topic).insert(index, of(world, topic)[index])


def swap(topic, i, j):
    def plant(world):
        records = of(world, topic)
        records[i], records[j] = records[j], records[i]

    return plant


def change(topic, index, **fields):
    def plant(world):
        of(world, topic)[index] = edit(of(world, topic)[index], **fields)

    return plant


def other_bytes(topic, index, **attributes):
    def plant(world):
        of(world, topic)[index] = replace(of(world, topic)[index], **attributes)

    return plant


def table_row(world):
    flow_id, (doc, last, chain) = next(iter(world.tables[0].flows.items()))
    row = {**json.loads(doc), "revision": json.loads(doc)["revision"] + 1}
    world.tables[0].flows[flow_id] = (json.dumps(row), last, chain)


def table_tail(world):
    flow_id, (doc, last, _) = next(iter(world.tables[0].flows.items()))
    world.tables[0].flows[flow_id] = (doc, last, bytes(16))


def renumbered(world):
    """An event dropped by somebody who closed the gap in the ids behind it."""
    records = of(world, "audit")
    del records[2]
    for index, record in enumerate(records):
        records[index] = edit(record, id=index + 1)


def a_command_unread(world):
    of(world, "commands").append(replace(of(world, "commands")[0], offset=99))


DEFECTS = {
    "an event dropped": (drop("audit", 3), "I3"),
    "the last event dropped": (drop("audit", -1), "I9"),
    "an event dropped and the ids closed up": (renumbered, "I7"),
    "an event doubled": (double("audit", 3), "I3"),
    "events swapped": (swap("audit", 1, 2), "I3"),
    "an event's payload edited": (change("audit", 0, payload_json={}), "I7"),
    "an event's status edited": (change("audit", -1, status="running"), "I3"),
    "an event's actor edited": (change("audit", -1, actor="x"), "I9"),
    "a chain lost": (other_bytes("audit", 1, headers=()), "I7"),
    "an event under another key": (other_bytes("audit", 1, key=b"x"), "I12"),
    "an outcome dropped": (drop("outcomes", 5), "I1"),
    "an outcome doubled": (double("outcomes", 0), "I1"),
    "outcomes swapped": (swap("outcomes", 7, 8), "I1"),
    "an outcome's revision off by one": (change("outcomes", 1, revision=2), "the flow is at"),
    "an outcome's time": (change("outcomes", 1, at="2026-01-01T00:00:00.000Z"), "appended"),
    "an outcome's digest": (change("outcomes", 1, command_digest="0" * 32), "digest"),
    "allowed not sorted": (change("outcomes", 0, allowed=["x", "a"]), "allowed"),
    "a resend accepted": (change("outcomes", 2, verdict="accepted"), "I2"),
    "a resend with another answer": (change("outcomes", 2, revision=7), "I2"),
    "a conflict accepted": (change("outcomes", 3, verdict="accepted", code=None), "I2"),
    "a field too many": (change("outcomes", 0, more=1), "more"),
    "a command without outcome": (a_command_unread, "I1"),
    "a dead letter dropped": (drop("deadletters", 0), "I9"),
    "a dead letter doubled": (double("deadletters", 0), "I9"),
    "a dead letter's value": (other_bytes("deadletters", 0, value=b"\xfe"), "another value"),
    "a dead letter's key": (other_bytes("deadletters", 0, key=b""), "another key"),
    "a snapshot dropped": (drop("state", 0), "I9"),
    "a cursor dropped": (drop("state", -1), "I9"),
    "a cursor that goes back": (swap("state", 1, 4), "I6"),
    "a snapshot edited": (change("state", 0, last_event_id=1), "I5"),
    "a snapshot twice": (double("state", 0), "I9"),
    "a tombstone missing": (other_bytes("state", -4, value=b"{}"), "I5"),
    "a table's row off by one": (table_row, "I5"),
    "a table's row with another tail": (table_tail, "I7"),
    "a table's row missing": (lambda world: world.tables[0].flows.clear(), "I5"),
    "a table's row too many": (
        lambda world: world.tables[0].flows.update({"x": ("{}", 1, b"")}),
        "I5",
    ),
    "a table behind": (lambda world: setattr(world.tables[0], "commands", 1), "I5"),
    "a table ahead": (lambda world: setattr(world.tables[0], "next_event_id", 99), "I5"),
    "a transaction left open": (lambda world: world.ends.update({("audit", 0): (1, 2)}), "I11"),
    "a traceparent lost": (other_bytes("outcomes", 0, headers=()), "traceparent"),
}


@pytest.mark.parametrize(("plant", "named"), DEFECTS.values(), ids=DEFECTS)
def test_a_planted_defect_turns_it_red(world, plant, named):
    plant(world)

    found = violations(world)

    assert any(named in sentence for sentence in found), found


def woken_early(world):
    """A wait that ended a second before its time: each record says the same, but for that."""
    until = json.dumps(given.timer(given.MORNING + 5_000)["at"])
    later = json.dumps(given.timer(given.MORNING + 8_000)["at"])
    for topic in ("commands", "audit", "state"):
        for index, record in enumerate(of(world, topic)):
            value = (record.value or b"").replace(until.encode(), later.encode())
            of(world, topic)[index] = replace(record, value=value)


def not_woken(world):
    """The wake of the flow that was asked to cancel never came."""
    of(world, "control")[0] = edit(of(world, "control")[0], kind="prune")


def woken_by_what_was_decided(world):
    """There is a wake, but it was decided before the request was made."""
    for index, record in enumerate(of(world, "state")[:-1]):
        if record.key.startswith(b"cursor/"):
            of(world, "state")[index] = edit(record, control=2)


WAITS = {
    "a timer that fires early": woken_early,
    "a request to cancel without a wake": not_woken,
    "a request to cancel with a wake of before": woken_by_what_was_decided,
}


@pytest.mark.parametrize("plant", WAITS.values(), ids=WAITS)
def test_a_planted_defect_of_a_wait_turns_it_red(plant):
    world = copy.deepcopy(NIGHT)
    assert violations(world) == []

    plant(world)

    assert any("I13" in sentence for sentence in violations(world)), violations(world)


@pytest.mark.parametrize(("after_ms", "late"), [(1_000, False), (1_001, True)])
def test_a_flow_that_waits_although_its_time_is_over_is_found_at_rest(after_ms, late):
    world = copy.deepcopy(NIGHT)
    # Whatever is appended last on any topic of the partition tells the time.
    letters = of(world, "deadletters")
    letters.append(replace(of(world, "state")[-1], topic="deadletters", timestamp=LATER + after_ms))

    assert not any("I13" in sentence for sentence in violations(world))
    found = [one for one in violations(world, punctual_ms=1_000) if "I13" in one]

    assert len(found) == late


@pytest.mark.parametrize(
    ("key", "partition"),
    # As Java's Utils.murmur2 gives them.
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536)],
)
def test_its_hash_is_kafkas(key, partition):
    assert partition_of(key, 2**31) == partition & 0x7FFFFFFF
