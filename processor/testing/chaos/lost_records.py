"""Find acknowledged records that are not on their topic any more."""

from collections.abc import Mapping

from processor.adapters.kafka.reader.topic_reader import read
from processor.settings import Settings
from processor.testing.chaos.load import digest


async def lost_records(
    settings: Settings, digests: Mapping[tuple[str, int], Mapping[int, int]]
) -> list[str]:
    """A sentence for each partition where some are missing, or others stand in their place.

    `digests`: of each acknowledged record, by full topic and partition, then by offset. Whether all
    that is there has its outcome does not show it: a record that was lost may have left its offset
    to another. Raises BrokerUnreachable.
    """
    left = {at: dict(of) for at, of in digests.items()}
    for topic in sorted({topic for topic, _ in digests}):
        async for record in read(settings, topic):
            of = left.get((topic, record.partition), {})
            if of.get(record.offset) == digest(record.key, record.value):
                del of[record.offset]
    return [
        f"{len(of)} records of {topic}/{partition} were acknowledged and are not there any more, "
        f"the first at offset {min(of)}."
        for (topic, partition), of in sorted(left.items())
        if of
    ]
