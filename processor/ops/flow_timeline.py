"""Fold a flow's events into its timeline: its state at any time, and what changed what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from processor.contract.values import parse_timestamp
from processor.domain.evolve import STEP_KINDS, evolve, evolve_step
from processor.domain.flow import Flow
from processor.domain.step import Step
from processor.domain.steps import run_id_of
from processor.engine.codec import fact_of
from processor.engine.encoding import flow_doc, step_doc
from processor.ops.json_path import ABSENT, Change, Path, changes, same, value_at, written

Doc = dict[str, Any]
Steps = Mapping[str, Doc]


class Moment(NamedTuple):
    """One event, with the flow and its steps behind it: None and none once it is pruned."""

    event: Doc
    chain: bytes | None
    flow: Flow | None
    steps: Steps

    @property
    def at_ms(self) -> int:
        return parse_timestamp(self.event["at"])

    @property
    def document(self) -> Doc | None:
        """What paths are about: the flow's fields, and `steps` by run id; None if it is gone."""
        if self.flow is None:
            return None
        return {**orjson.loads(flow_doc(self.flow)), "steps": dict(self.steps)}


class StatusPeriod(NamedTuple):
    """For how long a flow was in a status; `left_ms` None: it still is, or it ended there."""

    status: str
    entered_ms: int
    left_ms: int | None


class Blame(NamedTuple):
    """The event that changed a place last, with what stood there before and after."""

    event: Doc
    change: Change


@dataclass(frozen=True, slots=True)
class Life:
    """From a creation on, up to a prune if there was one: a pruned id may be created again."""

    moments: Sequence[Moment]

    @property
    def pruned(self) -> bool:
        return self.moments[-1].flow is None

    def at_revision(self, revision: int) -> Moment | None:
        """The last moment of that revision, steps that were observed meanwhile included."""
        return next(
            (
                moment
                for moment in reversed(self.moments)
                if moment.flow is not None and moment.flow.revision == revision
            ),
            None,
        )

    @property
    def revisions(self) -> tuple[int, int]:
        """The first and the last."""
        last = next(moment.flow for moment in reversed(self.moments) if moment.flow is not None)
        return 0, last.revision

    def blame(self, path: Path) -> Blame | None:
        """What changed the place last, a prune not counted; None if nothing ever stood there."""
        changed: Blame | None = None
        value: Any = ABSENT
        for moment in self.moments:
            document = moment.document
            if document is None:
                continue
            now = value_at(document, path)
            if not same(value, now):
                changed = Blame(moment.event, Change(written(path), value, now))
            value = now
        return changed

    def stays(self) -> list[StatusPeriod]:
        """In which status for how long, in order."""
        stays: list[StatusPeriod] = []
        for moment in self.moments:
            status = None if moment.flow is None else str(moment.flow.status)
            if stays and stays[-1].status != status:
                stays[-1] = stays[-1]._replace(left_ms=moment.at_ms)
            if status is not None and (not stays or stays[-1].status != status):
                stays.append(StatusPeriod(status, moment.at_ms, None))
        return stays


def lives(events: Iterable[tuple[Doc, bytes | None]]) -> list[Life]:
    """The lives of one flow, from its FlowEvents as JSON with their chains, in their order.

    Raises ValueError if the first is no `created`.
    """
    found: list[Life] = []
    moments: list[Moment] = []
    flow: Flow | None = None
    known: dict[str, Step] = {}
    steps: Steps = {}
    for event, chain in events:
        fact = fact_of(event)
        flow = evolve(flow, fact)
        if fact.kind in STEP_KINDS:
            run_id = run_id_of(fact)
            step = known[run_id] = evolve_step(known.get(run_id), fact)
            steps = {**steps, run_id: orjson.loads(step_doc(step))}
        if flow is None:
            known, steps = {}, {}
        moments.append(Moment(event, chain, flow, steps))
        if flow is None:
            found.append(Life(moments))
            moments = []
    if moments:
        found.append(Life(moments))
    return found


def at_time(story: Sequence[Life], at_ms: int) -> Moment | None:
    """The last moment up to `at_ms`; None if it was not created by then. Its flow is None where it
    was pruned."""
    latest = None
    for life in story:
        for moment in life.moments:
            if moment.at_ms > at_ms:
                return latest
            latest = moment
    return latest


def difference(before: Moment, after: Moment) -> list[Change]:
    """Each place in which the flow, or one of its steps, is another."""
    return [*changes(before.document, after.document)]


class Explanation(NamedTuple):
    """What an event says by itself. `left` is the stay that it ended, `ended` what ended a wait:
    `command`, `external_event`, `timer`, `timeout`, `steps`, `cancel` or `failure`; else None."""

    event: Doc
    left: StatusPeriod | None
    ended: str | None


def explanations(life: Life) -> list[Explanation]:
    """Each event, with the stay and the wait that it ended."""
    stays = iter(life.stays())
    stay = next(stays)
    found: list[Explanation] = []
    status: str | None = None
    for moment in life.moments:
        now = None if moment.flow is None else str(moment.flow.status)
        left = None
        if status is not None and now != status:
            left = stay
            stay = next(stays, stay)
        ended = _ended(moment.event) if left is not None and left.status == "waiting" else None
        found.append(Explanation(moment.event, left, ended))
        status = now
    return found


def _ended(event: Doc) -> str:
    match event["kind"]:
        case "resumed":
            return str(event["payload_json"]["by"])
        case "cancelled":
            return "cancel"
        case _:
            return "failure"
