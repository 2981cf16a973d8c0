"""Members of a group that give up their partitions slowly."""

import asyncio
from contextlib import AsyncExitStack

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.consumer.group_consumer import KafkaGroupConsumer
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.machine import patience

SESSION_TIMEOUT_MS = 1_000
REVOKING_S = 1.7
"""Longer than the session, as on an overloaded machine."""
PATIENCE_S = patience(30.0)


async def test_members_that_revoke_for_longer_than_the_session_come_to_share(
    broker: EmbeddedBroker, prefix: str
) -> None:
    settings = Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=4)
    await create_topics(settings)
    held: dict[str, frozenset[int]] = {}
    changed = asyncio.Event()

    def member(name: str) -> KafkaGroupConsumer:
        def assigned(partitions: frozenset[int]) -> None:
            held[name] = partitions
            changed.set()

        async def revoked() -> None:
            if held.get(name):
                await asyncio.sleep(REVOKING_S)

        return KafkaGroupConsumer(
            connection_options(settings, name),
            Topics(prefix),
            group_id=prefix,
            instance_id=None,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            on_assigned=assigned,
            on_revoked=revoked,
        )

    async def until_shared(*shares: set[int]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while {frozenset(share) for share in shares} != set(held.values()):
                changed.clear()
                await changed.wait()

    async with AsyncExitStack() as members:
        for name, shares in (("one", [{0, 1, 2, 3}]), ("other", [{0, 1}, {2, 3}])):
            joins = member(name)
            await joins.start()
            members.push_async_callback(joins.stop, timeout_s=1.0)
            await until_shared(*shares)
