"""How long the broker holds fetches: short for a second after records or an attach, then long."""

from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import SubscriptionState

from processor.adapters.kafka.consumer.fetch_hold import AT_REST_MS, BUSY_MS, BUSY_S, FetchHold
from processor.adapters.kafka.internals import hold_fetches


class _Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_fetches_are_held_for_long_only_at_rest() -> None:
    clock, applied = _Clock(), list[int]()
    hold = FetchHold(applied.append, clock)
    hold.idle()
    clock.now_s += BUSY_S - 0.001
    hold.idle()
    assert applied == []
    clock.now_s += 0.001
    hold.idle()
    hold.idle()
    assert applied == [AT_REST_MS]
    hold.busy()
    assert applied == [AT_REST_MS, BUSY_MS]
    clock.now_s += BUSY_S - 0.001
    hold.idle()
    assert applied == [AT_REST_MS, BUSY_MS]
    clock.now_s += 0.001
    hold.idle()
    assert applied == [AT_REST_MS, BUSY_MS, AT_REST_MS]


async def test_a_fetch_asks_the_broker_to_hold_it_so_long() -> None:
    """Guards the private names that `hold_fetches` touches."""
    consumer = AIOKafkaConsumer()
    assert consumer._fetcher is None  # until it is started
    consumer._fetcher = Fetcher(AIOKafkaClient(), SubscriptionState(), fetch_max_wait_ms=BUSY_MS)
    hold_fetches(consumer, AT_REST_MS)
    assert consumer._fetcher._fetch_max_wait_ms == AT_REST_MS
    await consumer.stop()
