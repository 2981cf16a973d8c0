"""The routes of the HTTP API: parameters, responses and refusals."""

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel

from processor.views import models


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `status` → what it answers then; problems are said by their status alone."""

    name: str
    method: Literal["GET", "POST"]
    path: str
    summary: str
    query: type[models.Query] | None
    answers: dict[int, type[BaseModel]]
    problems: tuple[int, ...]
    body: type[BaseModel] | None = None
    media_type: str = "application/json"


_READ: Final = (400, 503)
_ONE: Final = (400, 404, 503)

ROUTES: Final = (
    Route("flows", "GET", "/v1/flows", "Flows by owner, status, controller, wait, age, goal",
          models.FlowsQuery, {200: models.FlowPage}, _READ),
    Route("flow", "GET", "/v1/flows/{flow_id}", "One flow with its steps, now or at a revision",
          models.FlowQuery, {200: models.FlowAnswer}, _ONE),
    Route("history", "GET", "/v1/flows/{flow_id}/history",
          "A flow's events; those of a pruned flow, too",
          models.HistoryQuery, {200: models.EventPage}, _ONE),
    Route("events", "GET", "/v1/events", "The newest events of all flows, newest first",
          models.EventsQuery, {200: models.EventPage}, _READ),
    Route("stream", "GET", "/v1/stream",
          "Events as they happen (server-sent events): of one flow, of an owner's, or all",
          models.StreamQuery, {200: models.StreamEvent}, _READ, media_type="text/event-stream"),
    Route("statistics", "GET", "/v1/statistics",
          "Counts, rates, failure ratio, and how long flows stay in a status",
          models.StatisticsQuery, {200: models.Statistics}, _READ),
    Route("deadletters", "GET", "/v1/deadletters", "What could not be read as a command",
          models.DeadLettersQuery, {200: models.DeadLetterPage}, _READ),
    Route("partitions", "GET", "/v1/partitions", "Who decides and who projects what; how far",
          models.ReadQuery, {200: models.Partitions}, _READ),
    Route("command", "POST", "/v1/commands",
          "Publish a command, and await its outcome if asked to; needs the token",
          models.CommandQuery, {200: models.Published, 202: models.Published},
          (400, 401, 403, 413, 502, 504), body=models.CommandBody),
)  # fmt: skip
"""A command whose outcome was awaited is answered 200, whatever the verdict; one that was only
published 202."""
