"""Send a dead letter back, edited or as it is, for an operator who asks by HTTP."""

import logging
import re
from typing import Any, Final

from aiohttp import web

from processor.client.connection import connect
from processor.contract.headers import ISSUED_BY, REASON
from processor.contract.topics import Topics
from processor.ops.deadletters import DeadLetterRecord, Spot, outbound
from processor.ops.redrive import (
    AS_IT_IS,
    Plan,
    Redriven,
    dead_letter_at,
    diagnosis_of,
    send_back,
    why_not,
)
from processor.settings import Settings
from processor.telemetry.http.problem import ProblemError
from processor.telemetry.terminal import visible
from processor.views.http.command_endpoint import CommandEndpoint
from processor.views.http.parameters import CommandQuery, RedriveBody
from processor.views.http.problem_details import ViewProblemError

Json = dict[str, Any]
_SPOT: Final = re.compile(r"([0-9]{1,9})/([0-9]{1,18})")

_log = logging.getLogger(__name__)


class RedriveEndpoint:
    """Reads the letter itself from Kafka: what the views keep of it is only its beginning."""

    def __init__(self, settings: Settings, commands: CommandEndpoint) -> None:
        self._settings = settings
        self._topics = Topics(settings.topic_prefix)
        self._commands = commands

    async def take(self, request: web.Request, query: CommandQuery) -> Json:
        """The letter with its diagnosis, and once it was sent its outcome. Raises ProblemError."""
        self._commands.authorize_operator(request)
        body = RedriveBody.model_validate(await self._commands.body(request), strict=False)
        spot = _spot_of(request)
        dead_letter = await dead_letter_at(connect(self._settings), self._topics, spot)
        if dead_letter is None:
            raise ProblemError("not_found", f"There is no dead letter {spot}.")
        edited = None if body.value is None else body.value.encode()
        plan = AS_IT_IS if edited is None else Plan.editing(dead_letter, edited)
        stays = why_not(dead_letter, plan, unreadable=False)
        if body.dry_run:
            return self._shown(dead_letter, plan, stays, None)
        if stays is not None:
            raise ViewProblemError("invalid_command", f"The letter stays: {stays}.")
        if not query.wait:
            raise ProblemError("bad_request", "Say by `wait` how long to await the outcome.")
        _log.info(
            "%s by HTTP: dead letter %s goes back%s, because %s",
            *(visible(body.issued_by), spot, "" if edited is None else " edited"),
            visible(body.reason),
        )
        done = await self._commands.finish(
            self._send(dead_letter, plan, body, timeout_s=query.wait / 1000)
        )
        if done.place is None:
            raise ViewProblemError("not_sent", str(done.problem))
        if done.outcome is None:
            raise ViewProblemError(
                "no_outcome", "The letter was sent back; its command may still be applied."
            )
        return self._shown(dead_letter, plan, None, done.outcome)

    async def _send(
        self, dead_letter: DeadLetterRecord, plan: Plan, body: RedriveBody, *, timeout_s: float
    ) -> Redriven:
        record = outbound(
            dead_letter,
            self._topics.dead_letters,
            key=plan.key,
            value=plan.value,
            headers=[(ISSUED_BY, body.issued_by.encode()), (REASON, body.reason.encode())],
        )
        (done,) = await send_back(
            connect(self._settings), self._topics, [record], timeout_s=timeout_s
        )
        return done

    def _shown(
        self, dead_letter: DeadLetterRecord, plan: Plan, stays: str | None, outcome: Json | None
    ) -> Json:
        value = dead_letter.value if plan.value is None else plan.value
        try:
            text = None if value is None else value.decode()
        except UnicodeDecodeError:
            text = None
        found = diagnosis_of(dead_letter, plan)
        return {
            "partition": dead_letter.spot.partition,
            "offset": dead_letter.spot.offset,
            "topic": dead_letter.source_topic,
            "value": text,
            "code": found.code,
            "faults": [fault._asdict() for fault in found.faults],
            "stays": stays,
            "outcome": outcome,
        }


def _spot_of(request: web.Request) -> Spot:
    found = _SPOT.fullmatch(f"{request.match_info['partition']}/{request.match_info['offset']}")
    if found is None:
        raise ProblemError("not_found", "A dead letter lies at partition/offset, such as 2/17.")
    return Spot(int(found[1]), int(found[2]))
