"""Topics of one prefix at a secured Kafka, and a user with the rights of one role."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple
from uuid import uuid4

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.reader.topic_reader import read
from processor.client import AuditStream
from processor.client.kafka.command_producer import CommandProducer
from processor.contract.rights import Right, Role, rights
from processor.contract.topics import Topics
from processor.errors import TaskflowError
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.secured_kafka import SecuredKafka, User

SAYS_WITHIN_S: Final = patience(15)
"""Far less than Kafka's clients wait by themselves. Rights are asked for every 2 s, by a dozen
deployments at a time."""


class Row(NamedTuple):
    """`by`: what said so; names are those of the prefix `taskflow` and of principals by role."""

    role: Role
    without: str
    by: str
    says: str


class Deployment(NamedTuple):
    """Topics of one prefix, and a user of one role."""

    kafka: SecuredKafka
    role: Role
    prefix: str
    user: User

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    @property
    def rights(self) -> tuple[Right, ...]:
        return rights(self.role, self.topics, self.prefix)

    def settings(self, **chosen: Any) -> Settings:
        """As the user."""
        return self.kafka.settings(self.user, **self._chosen(chosen))

    def administrator(self, **chosen: Any) -> Settings:
        return self.kafka.administrator(**self._chosen(chosen))

    def _chosen(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"topic_prefix": self.prefix, "partitions": 1, "http": None} | more

    def environment(self) -> dict[str, str]:
        """Of the program, as the user."""
        return {
            "TASKFLOW_BOOTSTRAP_SERVERS": self.kafka.scram,
            "TASKFLOW_SECURITY_PROTOCOL": "SASL_SSL",
            "TASKFLOW_SASL_USERNAME": self.user.name,
            "TASKFLOW_SASL_PASSWORD": self.user.password,
            "TASKFLOW_SSL_CAFILE": str(self.kafka.ca_file),
            "TASKFLOW_TOPIC_PREFIX": self.prefix,
            "TASKFLOW_PARTITIONS": "1",
        }

    async def allow(self, some: Sequence[Right]) -> None:
        await asyncio.to_thread(self.kafka.allow, self.user.principal, some)

    async def forbid(self, some: Sequence[Right]) -> None:
        await asyncio.to_thread(self.kafka.forbid, self.user.principal, some)

    @asynccontextmanager
    async def without(self, right: Right) -> AsyncIterator[None]:
        await self.forbid([right])
        try:
            yield
        finally:
            await self.allow([right])

    def row(self, right: Right, by: str, sentence: str) -> Row:
        """Raises AssertionError unless `sentence` names principal, operation and resource."""
        found = re.search(r"(User:\S+ lacks .+?) at Kafka", sentence)
        assert found is not None, sentence
        assert self.user.principal in found[1], sentence
        assert str(right).rstrip("*") in found[1], (str(right), sentence)
        assert self.user.password not in sentence
        says = found[1].replace(self.user.principal, f"User:{self.role}")
        return Row(
            self.role,
            str(right).replace(self.prefix, "taskflow"),
            by,
            says.replace(self.prefix, "taskflow"),
        )


async def deployment(kafka: SecuredKafka, role: Role) -> Deployment:
    """With topics, and a user that has all rights of the role."""
    name = f"{role}-{uuid4().hex[:8]}"
    (user,) = await asyncio.to_thread(kafka.new_users, name)
    made = Deployment(kafka, role, f"t{uuid4().hex[:8]}", user)
    if role is not Role.ADMIN:
        await create_topics(made.administrator())
    await made.allow(made.rights)
    return made


def command() -> dict[str, Any]:
    return {
        "kind": "create_managed",
        "flow_id": str(uuid4()),
        "issued_by": "agent:kate",
        "controller_id": "shop",
        "goal": "deliver",
        "requester_origin": "web",
    }


async def said(work: Awaitable[Any], *errors: type[TaskflowError]) -> str:
    """The sentence with which it is refused, in time."""
    try:
        async with asyncio.timeout(SAYS_WITHIN_S):
            await work
    except errors as error:
        return str(error)
    raise AssertionError("nothing was refused")


async def publish_rubbish(settings: Settings) -> None:
    """A record that goes to the dead letters."""
    producer = CommandProducer(settings)
    commands = Topics(settings.topic_prefix).commands
    try:
        await producer.start()
        await producer.send(commands, b"x", b"{", [], handed_over=lambda: None)
    finally:
        await producer.close()


async def assert_decided_once(place: Deployment, count: int) -> None:
    """Each of `count` records gets one outcome, and no event is missing or twice."""
    settings = place.administrator()
    outcomes: list[dict[str, Any]] = []
    while len(outcomes) < count:
        records = read(settings, place.topics.outcomes)
        outcomes = [json.loads(record.value) async for record in records]
    assert len(outcomes) == count
    assert len({outcome["source"]["offset"] for outcome in outcomes}) == count
    dead_letters = [record async for record in read(settings, place.topics.dead_letters)]
    async with AuditStream(settings, follow=False) as events:  # holds the ids to be gapless
        flows = [event.flow_id async for event in events]
    assert len(flows) == len(set(flows)) == count - len(dead_letters)
