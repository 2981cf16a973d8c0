"""Detect that another live member has this worker's instance id.

A second live member with the same instance id takes the first one's place, is thrown out when the
first comes back, and so on, without an error (aiokafka 0.14 knows none for it). What can be seen:
the group no longer knows our member id, and knows another one of our name. A worker that was away
for longer than the session sees the same, and so does the sleeper that its successor replaced.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from processor.adapters.kafka.internals import AnyBrokerAdmin
from processor.errors import InstanceIdTaken

log = structlog.get_logger()

ASK_TIMEOUT_S: Final = 5.0
_UUID_LENGTH: Final = 36


class StaticMembership:
    """One stay in the group under `instance_id`, from the first member id that it is given."""

    def __init__(
        self,
        connection: Mapping[str, Any],
        *,
        group_id: str,
        instance_id: str,
        session_timeout_ms: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._group_id = group_id
        self._instance_id = instance_id
        self._session_timeout_s = session_timeout_ms / 1000
        self._monotonic = monotonic
        self._member_id = ""
        self._since = monotonic()

    def joined(self, member_id: str) -> None:
        """The group knows us as `member_id`."""
        if member_id != self._member_id:
            self._member_id = member_id
            self._since = self._monotonic()

    async def lost(self, member_id: str) -> InstanceIdTaken | None:
        """Why we must not join again, now that we are `member_id` ("": no member) to the group.

        Who held the name for a session and more takes it back; who had just got it gives it up. So
        of two that live, the one that came later stops, and of a sleeper and its successor, the
        sleeper.
        """
        if not self._member_id:
            return None  # never in it: who has our name may be what we were before a restart
        if member_id == self._member_id:
            return None
        held_s = self._monotonic() - self._since
        if not await self._another_is_there():
            return None
        if held_s > self._session_timeout_s:
            log.warning(
                "another worker took our place in the group; we take it back",
                instance_id=self._instance_id,
            )
            return None
        return InstanceIdTaken(
            f"Another live worker of group {self._group_id!r} has the TASKFLOW_INSTANCE_ID "
            f"{self._instance_id!r}; this one stops. Each worker needs an id of its own."
        )

    async def _another_is_there(self) -> bool:
        """Whether the group has a member of our name that is not us; no, if it does not say."""
        ours = re.compile(re.escape(self._instance_id) + f"-[0-9A-Za-z_-]{{{_UUID_LENGTH}}}")
        admin = AnyBrokerAdmin(**self._connection)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await admin.start()
                responses = await admin.describe_consumer_groups([self._group_id])
        except Exception as error:
            log.warning("the group could not be asked for our name", error=repr(error))
            return False
        finally:
            await admin.close()
        members = {
            member["member_id"]
            for response in responses
            for group in response.to_object()["groups"]
            for member in group["members"]
        }
        return any(ours.fullmatch(member) and member != self._member_id for member in members)
