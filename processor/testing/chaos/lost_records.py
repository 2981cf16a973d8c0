"""Find acknowledged records that are no longer on their topic."""

from collections.abc import Mapping

from processor.adapters.kafka.reader.topic_reader import read
from processor.settings import Settings
from processor.testing.chaos.load import digest


async def lost_records(
    settings: Settings, digests: Mapping[tuple[str, int], Mapping[int, int]]
) -> list[str]:
    """Return a sentence for each partition with lost or replaced records.

    `digests`: of each acknowledged record, by full topic and partition, then by offset. Outcomes do
    not show such a loss: another record may have the offset of a lost one. Raises
    BrokerUnreachable.
    """
    left = {at: dict(of) for at, of in digests.items()}
    for topic in sorted({topic for topic, _ in digests}):
        async for record in read(settings, topic):
            of = left.get((topic, record.partition), {})
            if of.get(record.offset) == digest(record.key, record.value):
                del of[record.offset]
    return [
        f"{len(of)} acknowledged records of {topic}/{partition} are lost, the first at offset "
        f"{min(of)}."
        for (topic, partition), of in sorted(left.items())
        if of
    ]
