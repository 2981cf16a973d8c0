"""Read records of some partitions by an assigned consumer, from positions up to ends."""

from collections.abc import Mapping, Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition


class RangeReader:
    """Reads what is in front of `positions`, without `ends` for ever.

    Positions rather than records say how far it is: aborted records and control records leave
    gaps, and the last offset may be one of them. Records behind an end are dropped, also those that
    `positions` has passed. One of these at a time may use a consumer.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        self.positions = dict(positions)
        """The next offset of each partition, past whatever `poll` has returned."""
        self._consumer = consumer
        self._ends = ends
        # Without an await in between: the consumer must not look for positions of its own.
        consumer.assign(list(self.positions))
        for tp, offset in self.positions.items():
            consumer.seek(tp, offset)

    @property
    def done(self) -> bool:
        """Whether each partition is read up to its end."""
        ends = self._ends
        return ends is not None and all(at >= ends[tp] for tp, at in self.positions.items())

    async def poll(
        self, *, wait_ms: int, max_records: int | None = None
    ) -> dict[TopicPartition, Sequence[ConsumerRecord]]:
        """What comes next, or nothing after `wait_ms`. Raises what aiokafka does."""
        consumer, ends = self._consumer, self._ends
        fetched = await consumer.getmany(
            *self.positions, timeout_ms=wait_ms, max_records=max_records
        )
        for tp in self.positions:
            at = self.positions[tp] = await consumer.position(tp)
            if ends is not None and at >= ends[tp]:
                # aiokafka's next fetch, which begins with our next await, would be held by the
                # broker until something comes, and whatever we ask meanwhile waits behind it.
                consumer.pause(tp)
        if ends is not None:
            fetched = {tp: [r for r in some if r.offset < ends[tp]] for tp, some in fetched.items()}
        return {tp: some for tp, some in fetched.items() if some}
