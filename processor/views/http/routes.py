"""The routes of the HTTP API: parameters, responses and refusals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import BaseModel

from processor.views.http import parameters, responses


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `status` → what it answers then; problems are said by their status alone.

    `description`: what the summary does not say. `notes`: status → what it means here.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    summary: str
    query: type[parameters.Query] | None
    responses: dict[int, type[BaseModel]]
    problems: tuple[int, ...]
    body: type[BaseModel] | None = None
    token: Literal["read", "write", "operator"] = "read"
    media_type: str = "application/json"
    description: str = ""
    notes: Mapping[int, str] = field(default_factory=dict)


_ANY: Final = (400, 403, 408, 414, 421, 431, 503)
_READ: Final = (*_ANY, 401)
_ONE: Final = (*_READ, 404)
_WRITE: Final = (*_READ, 413, 415, 502, 504)
_NOTES: Final = {
    200: "The outcome, whatever its verdict: accepted, rejected, duplicate, quarantined.",
    202: "Published and acknowledged, not decided yet: `outcome` is null. The command may still be "
    "rejected; its outcome comes on the topic `outcomes`.",
    502: "Not acknowledged by Kafka. It may be published all the same.",
    504: "Published, and no outcome within `wait`. It may still be applied.",
}

ROUTES: Final = (
    Route("flows", "GET", "/v1/flows", "Flows by owner, status, controller, wait, age, goal",
          parameters.FlowsQuery, {200: responses.FlowPage}, _READ),
    Route("flow", "GET", "/v1/flows/{flow_id}", "One flow with its steps, now or at a revision",
          parameters.FlowQuery, {200: responses.FlowAnswer}, _ONE),
    Route("steps", "GET", "/v1/steps", "Managed steps by task, status, holder, flow, age",
          parameters.StepsQuery, {200: responses.StepPage}, _READ),
    Route("history", "GET", "/v1/flows/{flow_id}/history",
          "A flow's events; those of a pruned flow, too",
          parameters.HistoryQuery, {200: responses.EventPage}, _ONE),
    Route("events", "GET", "/v1/events", "The newest events of all flows, newest first",
          parameters.EventsQuery, {200: responses.EventPage}, _READ),
    Route("stream", "GET", "/v1/stream",
          "Events as they happen (server-sent events): of one flow, of an owner's, or all",
          parameters.StreamQuery, {200: responses.StreamEvent}, _READ,
          media_type="text/event-stream"),
    Route("statistics", "GET", "/v1/statistics",
          "Counts, rates, failure ratio, and how long flows stay in a status",
          parameters.StatisticsQuery, {200: responses.Statistics}, _READ),
    Route("deadletters", "GET", "/v1/deadletters", "What could not be read as a command",
          parameters.DeadLettersQuery, {200: responses.DeadLetterPage}, _READ),
    Route("partitions", "GET", "/v1/partitions", "Who decides and who projects what; how far",
          parameters.ReadQuery, {200: responses.Partitions}, _READ),
    Route("command", "POST", "/v1/commands",
          "Publish a command, and await its outcome if asked to; needs the write token",
          parameters.CommandQuery, {200: responses.Published, 202: responses.Published},
          _WRITE, body=parameters.CommandBody, token="write",
          description="Without `wait` the command is published and nothing more: 202 says that "
          "Kafka has acknowledged it, and not that it is accepted. With `wait` the response is its "
          "outcome, 200 for every verdict. `command_id` is made up where it is missing; send one "
          "of your own, and the same body again after 502 or 504, or after no response: within "
          "the dedupe window it is applied once, and the copy is answered `duplicate`.",
          notes=_NOTES),
    Route("signal", "POST", "/v1/signals",
          "Send an event to the flow that waits for it; needs the write token",
          None, {202: responses.SignalPublished}, _WRITE, body=parameters.SignalBody, token="write",
          description="`taskflow signals` delivers it to the flow that waits for its topic and "
          "correlation id, or will within TASKFLOW_SIGNAL_TTL. Set `id`, and send the same body "
          "again after 502, 504 or no response: it is delivered once.",
          notes={202: "Kafka has it. The audit shows its delivery.",
                 502: "Not sent, or not acknowledged by Kafka.",
                 504: "Kafka did not acknowledge it in time. It may be sent."}),
    Route("control", "POST", "/v1/control",
          "Act on a flow or a step with an operator's authority; needs the operator token",
          parameters.CommandQuery, {200: responses.Published, 202: responses.Published},
          _WRITE, body=parameters.ControlBody, token="operator",
          description="The command goes to `control`, issued by the person who is named. With "
          "`dry_run` it is decided and changes nothing: a preview. `expected_revision` refuses "
          "what has changed since.",
          notes=_NOTES),
    Route("redrive", "POST", "/v1/deadletters/{partition}/{offset}/redrive",
          "Send a dead letter back, edited or as it is; needs the operator token",
          parameters.CommandQuery, {200: responses.Redrive},
          (*_WRITE, 404), body=parameters.RedriveBody, token="operator",
          description="With `dry_run` the letter is shown whole, with what the processor would "
          "say of it today, and nothing is sent. Else `wait` is needed, and the response has the "
          "outcome. A letter that would only become a dead letter again is refused. Whether it "
          "was sent back before is not looked for: `taskflow deadletters list` does.",
          notes={**_NOTES, 200: "The letter as it goes back, or with its outcome."}),
)  # fmt: skip
