"""Which outcome answers which call of `send`."""

import asyncio
import gc
from typing import Any

import pytest

from processor.client.pending_outcome import SEEN_MAX, NoLongerRead, Pending, Registry
from processor.contract import Outcome, Source

FLOW = "8f14e45f-ceea-467f-9575-0cb0a9b1c8a1"
COMMAND = "c9f0f895-fb98-4b91-a1e3-2d8b1a7c5e22"
KEY = FLOW.encode()
DIGEST = "0" * 32
OTHER_DIGEST = "1" * 32


def at(offset: int, partition: int = 0, topic: str = "t.commands") -> Source:
    return Source(topic=topic, partition=partition, offset=offset)


def outcome(source: Source, **fields: Any) -> Outcome:
    return Outcome.model_validate_json(
        Outcome.model_construct(
            **{
                "command_id": COMMAND,
                "flow_id": FLOW,
                "kind": "cancel",
                "verdict": "accepted",
                "code": None,
                "message": "The flow is cancelled.",
                "revision": 1,
                "status": "cancelled",
                "event_ids": [1],
                "allowed": [],
                "details": {},
                "dry_run": False,
                "command_digest": DIGEST,
                "source": source,
                "at": "2026-11-22T21:02:08.123Z",
                **fields,
            }
        ).model_dump_json(warnings=False)
    )


def a_call(command_id: str = COMMAND) -> Pending:
    return Pending(KEY, command_id, DIGEST, "t.commands")


async def test_the_outcome_of_our_own_record_answers_the_call() -> None:
    call = a_call()
    call.written(at(7))
    call.offer(final := outcome(at(7)))
    assert call.future.result() == final


async def test_an_outcome_may_come_before_the_place_of_the_record_is_known() -> None:
    call = a_call()
    call.offer(final := outcome(at(7)))
    assert not call.future.done()
    call.written(at(7))
    assert call.future.result() == final


async def test_of_two_calls_with_one_id_each_hears_of_its_own_record() -> None:
    registry, first, second = Registry(), a_call(), a_call()
    with registry.holding(first), registry.holding(second):
        second.written(at(8))
        registry.deliver(KEY, outcome(at(7)))
        registry.deliver(KEY, outcome(at(8), verdict="duplicate", original="accepted"))
        first.written(at(7))
    assert first.future.result().verdict == "accepted"
    assert second.future.result().verdict == "duplicate"


async def test_a_forwarded_record_is_answered_by_the_outcome_of_its_copy() -> None:
    call = a_call()
    call.written(at(7))
    call.offer(outcome(at(7), verdict="forwarded", revision=None, status=None))
    assert not call.future.done()
    call.offer(final := outcome(at(3, partition=2)))
    assert call.future.result() == final


async def test_the_outcome_of_the_copy_may_be_read_first() -> None:
    call = a_call()
    call.written(at(7))
    call.offer(final := outcome(at(3, partition=2)))
    assert not call.future.done()
    call.offer(outcome(at(7), verdict="forwarded", revision=None, status=None))
    assert call.future.result() == final


async def test_without_a_place_an_equal_command_on_the_same_topic_answers() -> None:
    call = a_call()
    call.written(None)
    call.offer(outcome(at(5), command_digest=OTHER_DIGEST, verdict="rejected"))
    call.offer(outcome(at(6, topic="t.control")))
    assert not call.future.done()
    call.offer(final := outcome(at(7)))
    assert call.future.result() == final


async def test_a_record_that_was_written_twice_is_answered_by_either() -> None:
    call = a_call()
    call.written_twice()
    call.offer(final := outcome(at(7)))
    assert call.future.result() == final


async def test_an_outcome_without_ids_is_known_by_its_source() -> None:
    registry, call, other = Registry(), a_call(), a_call(command_id=FLOW)
    with registry.holding(call), registry.holding(other):
        call.written(at(7))
        other.written(at(8))
        registry.deliver(
            KEY,
            final := outcome(
                at(7), verdict="quarantined", code="internal_error", command_id=None, flow_id=None
            ),
        )
    assert call.future.result() == final
    assert not other.future.done()


async def test_at_the_deadline_the_answer_to_an_equal_sending_serves() -> None:
    call = a_call()
    call.written(at(9))
    call.offer(final := outcome(at(7)))
    assert not call.future.done()
    assert call.at_the_deadline() == final


@pytest.mark.parametrize("code", ["forbidden", "not_owner", "idempotency_conflict"])
async def test_a_refusal_that_does_not_burn_the_id_serves_no_other_sending(code: str) -> None:
    call = a_call()
    call.written(at(9))
    call.offer(outcome(at(7), verdict="rejected", code=code))
    assert call.at_the_deadline() is None


async def test_a_flood_of_others_outcomes_is_not_kept() -> None:
    call = a_call()
    for offset in range(1000):
        call.offer(outcome(at(offset), command_digest=OTHER_DIGEST))
    assert len(call._seen) == SEEN_MAX


async def test_a_registry_forgets_calls_that_have_ended() -> None:
    registry, first, second = Registry(), a_call(), a_call()
    with registry.holding(first):
        with registry.holding(second):
            assert registry.wants(KEY)
            assert len(registry) == 2
        assert len(registry) == 1
    assert len(registry) == 0
    assert not registry.wants(KEY)


async def test_when_outcomes_are_no_longer_read_every_call_hears_why() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    registry, call, unheard = Registry(), a_call(), a_call()
    with registry.holding(call), registry.holding(unheard):
        registry.fail("the client was closed")
        with pytest.raises(NoLongerRead, match="closed"):
            await call.future
    del unheard
    gc.collect()
    assert complaints == [], "asyncio reports an exception that no call has read"
