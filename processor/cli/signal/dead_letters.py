"""Read the signals that were not delivered."""

from typing import Any

from processor.adapters.kafka.reader.topic_reader import read
from processor.client.signals.signal_reader import InvalidSignal, read_signal
from processor.contract.headers import split_dead_letter
from processor.contract.topics import SignalTopics
from processor.contract.values import instant
from processor.engine.codec import Record
from processor.settings import Settings


async def undelivered(settings: Settings) -> list[dict[str, Any]]:
    """The records of `signals.deadletters` as JSON, in the order of their times. Raises
    BrokerUnreachable, TopicsWrong, AccessDenied."""
    topic = SignalTopics(settings.topic_prefix).dead_letters
    found = [(record.timestamp, described(record)) async for record in read(settings, topic)]
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def described(record: Record) -> dict[str, Any]:
    """A dead letter as JSON; the fields of the signal are null if the record is not a signal."""
    _, facts = split_dead_letter(record.headers)
    shown: dict[str, Any] = {
        "at": instant(record.timestamp),
        "code": None if facts is None else facts.code,
        "message": "" if facts is None else facts.message,
        "source": None if facts is None or facts.source is None else str(facts.source),
    }
    try:
        signal = read_signal(record.value)
    except InvalidSignal:
        return {**shown, "id": None, "topic": None, "correlation_id": None, "payload": None}
    return {
        **shown,
        "id": signal.id,
        "topic": signal.topic,
        "correlation_id": signal.correlation_id,
        "payload": signal.payload,
    }
