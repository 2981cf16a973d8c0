"""Ask this worker and its peers one question, and say how fresh and how whole the parts are."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from aiohttp import web

from processor.contract.values import EVENTS_PER_PARTITION
from processor.engine.partitioner import partition_of
from processor.telemetry.http.problem import ProblemError
from processor.views.http.parameters import ReadQuery
from processor.views.http.problem_details import ViewProblemError
from processor.views.model.positions import Positions
from processor.views.model.read_model import ReadModel
from processor.views.query import scatter_gather
from processor.views.query.peers import PeerFailed, Peers

Json = dict[str, Any]
WAITING_MAX: Final = 128
"""Requests that wait for events at the same time; one more is answered `not_yet` at once."""


class FanOut:
    """Puts a question to all workers that have a part of the response."""

    def __init__(self, view: ReadModel, peers: Peers, partitions: int) -> None:
        self.positions = Positions(partitions)
        self.all = range(partitions)
        self._view = view
        self._peers = peers
        self._waiting = 0

    async def ask(
        self,
        request: web.Request,
        query: ReadQuery,
        local: Callable[[Collection[int]], Awaitable[Json]],
        *,
        wanted: Collection[int] | None = None,
        path: str | None = None,
    ) -> tuple[list[Json], Json]:
        """Each worker's answer, ours first, and `view` of all.

        `wanted`: the partitions that matter, all if None. Raises Problem.
        """
        self.positions.check_after(query.after)
        wanted = self.all if wanted is None else wanted
        ours = self._view.own_partitions & set(wanted)
        others = {
            url: shared
            for url, theirs in (self._peers.others() if query.scope == "all" else {}).items()
            if (shared := (theirs & set(wanted)) - ours)
        }
        after = _by_partition(query.after)
        homeless = after.keys() - ours - set().union(*others.values())
        if homeless & set(wanted):
            raise _not_yet()
        given = {key: value for key, value in request.query.items() if key != "after"}
        parameters = {}
        for url, theirs in others.items():
            theirs_after = [e for p in theirs for e in after.get(p, ())]
            parameters[url] = {**given, "scope": "local"}
            if theirs_after:
                parameters[url]["after"] = ",".join(map(str, theirs_after))
        own_after = [e for p in ours for e in after.get(p, ())]
        wait_s = query.wait / 1000
        if own_after and not await self._includes(own_after, wait_s):
            raise _not_yet()
        path = path or request.path
        views = [self._shown(p) for p in sorted(ours)]
        lag_ms = self._lag_ms(ours)
        mine = await local(ours)
        parts, seen = [mine], [(views, lag_ms)]
        asked = await self._peers.ask_all(path, parameters, wait_s) if parameters else ()
        for theirs, found in zip(others.values(), asked, strict=False):
            if isinstance(found, PeerFailed):
                _raise_if_final(found)
                continue
            parts.append(found)
            shown = [v for v in found["view"]["partitions"] if v["partition"] in theirs]
            seen.append((shown, found["view"]["lag_ms"]))
        all_of = wanted if query.scope == "all" else ours
        return parts, scatter_gather.view_of(seen, all_of)

    async def _includes(self, event_ids: list[int], wait_s: float) -> bool:
        """Whether the events are projected within `wait_s`, or now where too many wait."""
        self._waiting += 1
        try:
            return await self._view.includes(
                event_ids, wait_s if self._waiting <= WAITING_MAX else 0
            )
        finally:
            self._waiting -= 1

    def _shown(self, partition: int) -> Json:
        return {
            "partition": partition,
            "event_id": self._view.position(partition).event_id,
            "behind": self._view.behind(partition),
        }

    def _lag_ms(self, partitions: Collection[int]) -> int | None:
        lags = [self._view.lag_ms(partition) for partition in partitions]
        return None if None in lags else max((lag or 0 for lag in lags), default=0)

    async def of_one(
        self,
        request: web.Request,
        query: ReadQuery,
        local: Callable[[Collection[int]], Awaitable[Json | None]],
    ) -> Json:
        """The answer of the worker that has the flow of this path. Raises Problem."""
        flow_id = request.match_info["flow_id"]
        partition = partition_of(flow_id.encode(), len(self.all))

        async def here(partitions: Collection[int]) -> Json:
            return await local(partitions) or {} if partition in partitions else {}

        parts, view = await self.ask(request, query, here, wanted=[partition])
        if not view["complete"]:
            raise ViewProblemError(
                "unavailable", f"No view worker answers for partition {partition}."
            )
        found = next((part for part in parts if part), None)
        if found is None:
            raise ProblemError("not_found", "There is no such flow.")
        return {**found, "view": view}


def _by_partition(event_ids: Collection[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for event_id in event_ids:
        found.setdefault(event_id // EVENTS_PER_PARTITION, []).append(event_id)
    return found


def _not_yet() -> ViewProblemError:
    return ViewProblemError("not_yet", "Ask again, or with a longer `wait`; or leave `after` out.")


def _raise_if_final(failed: PeerFailed) -> None:
    """A peer that refuses refuses for all; a silent one leaves a gap that is reported."""
    problem = failed.problem
    if problem is not None and problem.get("code") in (
        *("bad_request", "not_yet", "not_found", "revision_unknown", "too_expensive"),
    ):
        raise ViewProblemError(problem["code"], problem["detail"], errors=problem.get("errors", ()))
