"""What becomes of records: of `signals`, of `audit`, and of signals that no flow waits for."""

from typing import Any

import orjson

from processor.contract.headers import RecordPlace, split_dead_letter
from processor.contract.signals import INVALID, UNCLAIMED
from processor.contract.topics import SignalTopics
from processor.engine.codec import Draft
from processor.engine.partitioner import hashed_partition
from processor.signals.facts import AuditRead, SignalReceived, WaitKey, decode_fact
from processor.signals.folds import MatchFold, SignalIntake, WaitIntake
from processor.signals.metrics import SignalMetrics

KEY = WaitKey("payments", "order-17")
TOPICS = SignalTopics("shop")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(value: bytes | None, *, key: bytes | None = b"any", headers: Any = ()) -> Draft:
    return Draft(key, value, TOPICS.signals, 1, 42, 1_700_000_000_000, headers)


def signal(**fields: Any) -> bytes:
    return orjson.dumps({"id": "s1", "topic": "payments", "correlation_id": "order-17"} | fields)


def test_a_signal_goes_to_the_partition_of_its_key_whatever_its_record_has() -> None:
    intake = SignalIntake(8, SignalMetrics())
    intake.apply(
        [record(signal(payload={"paid": True}), headers=[("traceparent", TRACE.encode())])]
    )
    output = intake.take_output()

    ((partition, (written,)),) = output.log.items()
    assert partition == hashed_partition(KEY.encoded(), 8)
    assert decode_fact(written.key, written.value) == (
        KEY,
        SignalReceived("s1", 1_700_000_000_000, 1, 42, {"paid": True}, TRACE),
    )
    assert output.dead_letters == []


def test_what_is_no_signal_is_a_dead_letter_as_it_came() -> None:
    intake = SignalIntake(8, SignalMetrics())
    foreign = [("mine", b"1")]
    intake.apply([record(b"\x00", headers=foreign), record(signal(flow_id="x")), record(None)])
    output = intake.take_output()

    assert output.log == {}
    first, *_ = output.dead_letters
    assert len(output.dead_letters) == 3
    headers, facts = split_dead_letter(first.headers)
    assert (first.key, first.value, headers) == (b"any", b"\x00", foreign)
    assert facts is not None
    assert (facts.code, facts.source) == (INVALID, RecordPlace(TOPICS.signals, 1, 42))


def test_how_far_the_audit_is_read_is_said_on_every_partition_and_never_goes_back() -> None:
    intake = WaitIntake(3, 2)
    intake.apply([Draft(b"f", b'{"flow_id":"f","kind":"created","revision":0}', timestamp=500)])

    for at_ms in (100, 0):
        said = intake.read_up_to(at_ms)
        assert [decode_fact(one.key, one.value) for (one,) in said.values()] == [
            (None, AuditRead(3, 500))
        ] * 2


def test_the_dead_letter_of_a_signal_can_be_sent_again() -> None:
    fold = MatchFold(TOPICS, 1, 1000, SignalMetrics())
    intake = SignalIntake(1, SignalMetrics())
    intake.apply([record(signal(payload=[1, None]))])
    (received,) = intake.take_output().log[0]
    end_ms = 1_700_000_001_000
    (read,) = WaitIntake(0, 1).read_up_to(end_ms)[0]
    fold.apply([Draft(one.key, one.value) for one in (received, read)])

    (dead_letter,) = fold.take_output().dead_letters
    headers, facts = split_dead_letter(dead_letter.headers)
    assert (dead_letter.value, headers) == (signal(payload=[1, None]), [])
    assert facts is not None
    assert (facts.code, facts.source, facts.source_ms) == (
        *(UNCLAIMED, RecordPlace(TOPICS.signals, 1, 42), end_ms - 1000),
    )
