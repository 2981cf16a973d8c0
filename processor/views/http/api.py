"""Handle the API's routes: combine this worker's rows with its peers' into one response."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web

from processor.engine.partitioner import partition_of
from processor.settings import Settings
from processor.telemetry.http.problem import ProblemError
from processor.views.access.readers import Readers, exchange_of
from processor.views.consumer_group import WorkerGroup
from processor.views.http import parameters
from processor.views.http.command_endpoint import CommandEndpoint
from processor.views.http.pagination import keyset, read_vector
from processor.views.http.parameters import ReadQuery
from processor.views.http.redrive_endpoint import RedriveEndpoint
from processor.views.http.routes import ROUTES, Route
from processor.views.http.server_sent_events import EventStreams
from processor.views.model.aggregates import added_minutes, added_totals
from processor.views.model.projection import at_ms
from processor.views.model.read_model import ReadModel
from processor.views.query import flow_queries, queries, scatter_gather, step_queries
from processor.views.query.fan_out import FanOut
from processor.views.query.peers import Peers
from processor.views.query.queries import BadQuery

_LATEST: Final = 2**63

Json = dict[str, Any]
Q = TypeVar("Q", bound=ReadQuery)
_INTERNAL: Final = "/internal/statistics"
"""Statistics before they are added up, which the workers ask each other for."""


class Api:
    """Answers for all partitions, whichever worker is asked."""

    def __init__(
        self,
        settings: Settings,
        view: ReadModel,
        peers: Peers,
        *,
        group: WorkerGroup,
        commands: CommandEndpoint,
        readers: Readers,
    ) -> None:
        self.readers = readers
        self._fan_out = FanOut(view, peers, settings.partitions)
        self._view = view
        self._peers = peers
        self._group = group
        self._commands = commands
        self._redrives = RedriveEndpoint(settings, commands)
        self._actions = settings.views_operator_token is not None
        self._streams = EventStreams(
            view, peers, settings.partitions, streams_max=settings.views_streams
        )

    def routes(self) -> list[web.RouteDef]:
        """Every route of ROUTES, and what the workers ask each other for."""
        found = [web.get(_INTERNAL, self._timed("statistics_of_peer", self._raw_statistics))]
        elsewhere: dict[str, Callable[..., Awaitable[Any]]] = {
            "stream": self._streams.serve,
            "command": self._commands.take,
            "signal": lambda request, _: self._commands.signal(request),
            "control": self._commands.act,
            "redrive": self._redrives.take,
        }
        for route in ROUTES:
            own = elsewhere.get(route.name) or getattr(self, f"_{route.name}")
            handler = self._parsed(route, own)
            timed = handler if route.name == "stream" else self._timed(route.name, handler)
            found.append(web.route(route.method, route.path, timed))
        return found

    def _timed(
        self, name: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def timed(request: web.Request) -> web.StreamResponse:
            began, status = time.perf_counter(), "error"
            try:
                response = await handler(request)
                status = str(response.status)
                return response
            except ProblemError as problem:
                status = str(problem.status)
                raise
            except asyncio.CancelledError:
                status = "left"
                raise
            finally:
                took_s = time.perf_counter() - began
                self._view.metrics.requests.labels(name, status).observe(took_s)

        return timed

    def _parsed(
        self, route: Route, handler: Callable[..., Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def parsed(request: web.Request) -> web.StreamResponse:
            if route.token == "read":  # the others look at their own
                self.readers.check(request)
            given = dict(request.query)
            if len(given) < len(request.query):
                raise BadQuery("", "a parameter is given twice")
            query = None if route.query is None else route.query.model_validate(given)
            found = await handler(request, query)
            if isinstance(found, web.StreamResponse):
                return found
            status, body = found if isinstance(found, tuple) else (200, found)
            return _json(body, status)

        return parsed

    # Answering

    async def _flows(self, request: web.Request, query: parameters.FlowsQuery) -> Json:
        self._fan_out.positions.check_flows(query.cursor, query.sort)
        ascending = query.sort == "wait"

        async def local(partitions: Collection[int]) -> Json:
            rows, all_of = await flow_queries.flows(self._view.database, query, partitions)
            return {"rows": rows, "searched_all": all_of}

        return await self._page(
            request,
            query,
            local,
            lambda item: flow_queries.flow_key(item, query.sort),
            kind=query.sort,
            ascending=ascending,
        )

    async def _steps(self, request: web.Request, query: parameters.StepsQuery) -> Json:
        self._fan_out.positions.check_flows(query.cursor, step_queries.ORDER)

        async def local(partitions: Collection[int]) -> Json:
            return {"rows": await step_queries.steps(self._view.database, query, partitions)}

        return await self._page(
            request,
            query,
            local,
            step_queries.step_key,
            kind=step_queries.ORDER,
            ascending=False,
        )

    async def _page(
        self,
        request: web.Request,
        query: parameters.PageQuery,
        local: Callable[[Collection[int]], Awaitable[Json]],
        key_of: Callable[[Json], tuple[int, ...]],
        *,
        kind: str,
        ascending: bool,
    ) -> Json:
        """A page of items that every worker has in the same order; `local` gives them as `rows`."""
        parts, view = await self._fan_out.ask(request, query, local)
        rows = [
            part["rows"] if "rows" in part else [(key_of(item), item) for item in part["items"]]
            for part in parts
        ]
        more = any(part.get("next_cursor") for part in parts)
        items, cursor = scatter_gather.page(rows, query.limit, kind, ascending=ascending)
        if cursor is None and more:
            # A peer gives a page of its own, and says by a cursor that it has more.
            cursor = keyset(kind, *max_key(rows, ascending=ascending))
        found: Json = {"items": items, "next_cursor": cursor, "view": view}
        if "searched_all" in parts[0]:
            # A worker of an older version does not say it.
            found["searched_all"] = all(part.get("searched_all", True) for part in parts)
        return found

    async def _flow(self, request: web.Request, query: parameters.FlowQuery) -> Json:
        async def local(_: Collection[int]) -> Json | None:
            return await queries.flow(
                self._view.database, request.match_info["flow_id"], query.revision
            )

        return await self._fan_out.of_one(request, query, local)

    async def _history(self, request: web.Request, query: parameters.HistoryQuery) -> Json:
        partition = partition_of(request.match_info["flow_id"].encode(), len(self._fan_out.all))
        self._fan_out.positions.check_history(query.cursor, query.order, partition)

        async def local(_: Collection[int]) -> Json | None:
            found = await queries.history(self._view.database, request.match_info["flow_id"], query)
            return None if found is None else {"items": found[0], "next_cursor": found[1]}

        return await self._fan_out.of_one(request, query, local)

    async def _events(self, request: web.Request, query: parameters.EventsQuery) -> Json:
        asked = self._fan_out.positions.of_events(query.cursor)

        async def local(partitions: Collection[int]) -> Json:
            tops = {
                # A worker that was further may have written the cursor.
                partition: min(
                    self._view.position(partition).event_id + 1,
                    (asked or {}).get(partition, _LATEST),
                )
                for partition in partitions
                if asked is None or asked.get(partition)
            }
            rows, floors = await queries.events(self._view.database, query, tops)
            return {"rows": rows, "floors": floors}

        parts, view = await self._fan_out.ask(request, query, local)
        pages = [
            (part["rows"], part["floors"])
            if "rows" in part
            else (
                [(scatter_gather.event_key(item), item) for item in part["items"]],
                read_vector(part["next_cursor"]) if part["next_cursor"] else _done(part),
            )
            for part in parts
        ]
        items, cursor = scatter_gather.event_page(pages, query.limit)
        return {"items": items, "next_cursor": cursor, "view": view}

    async def _statistics(self, request: web.Request, query: parameters.StatisticsQuery) -> Json:
        async def local(partitions: Collection[int]) -> Json:
            return self._counted(partitions, query.minutes)

        parts, view = await self._fan_out.ask(request, query, local, path=_INTERNAL)
        counted = [
            ({int(start): some for start, some in part["minutes"].items()}, part["totals"])
            for part in parts
        ]
        now_ms = time.time_ns() // 1_000_000
        return {**scatter_gather.statistics(counted, query.minutes, now_ms), "view": view}

    def _counted(self, partitions: Collection[int], minutes: int) -> Json:
        now_s = int(time.time())
        first = now_s - now_s % 60 - (minutes - 1) * 60
        view = self._view
        return {
            "minutes": {
                str(start): some  # as JSON has keys: peers get this
                for start in range(first, now_s + 60, 60)
                if (some := [m for p in partitions if (m := view.minutes.at(p, start))])
            },
            "totals": [t for p in partitions if (t := view.totals.at(p, None))],
        }

    async def _raw_statistics(self, request: web.Request) -> web.Response:
        if exchange_of(request) is None:
            raise ProblemError("forbidden", "Only view workers ask each other for this.")
        query = parameters.StatisticsQuery.model_validate(dict(request.query))

        async def local(partitions: Collection[int]) -> Json:
            return self._counted(partitions, query.minutes)

        (counted,), view = await self._fan_out.ask(request, query, local)
        minutes = {
            start: [added_minutes(some).as_json()] for start, some in counted["minutes"].items()
        }
        totals = [added_totals(counted["totals"]).as_json()]
        return _json({"minutes": minutes, "totals": totals, "view": view}, 200)

    async def _deadletters(self, request: web.Request, query: parameters.DeadLettersQuery) -> Json:
        self._fan_out.positions.check_dead_letters(query.cursor)

        async def local(partitions: Collection[int]) -> Json:
            return {"rows": await queries.dead_letters(self._view.database, query, partitions)}

        return await self._page(
            request, query, local, _dead_letter_key, kind="letters", ascending=False
        )

    async def _ends(self, partitions: Collection[int]) -> Json:
        return {"ends": {partition: self._view.end(partition) for partition in partitions}}

    async def _partitions(self, request: web.Request, query: ReadQuery) -> Json:
        parts, view = await self._fan_out.ask(request, query, self._ends)
        ends: dict[int, int | None] = dict(parts[0]["ends"])
        for part in parts[1:]:
            ends |= {item["partition"]: item["audit_end"] for item in part["items"]}
        owners = {p: url for url, theirs in self._peers.others().items() for p in theirs}
        owners |= dict.fromkeys(self._view.own_partitions, self._peers.own)
        shown = {each["partition"]: each for each in view["partitions"]}
        standing = await self._group.standing()
        over = self._fan_out.all if query.scope == "all" else sorted(self._view.own_partitions)
        items = [
            {
                "partition": partition,
                **standing.of(partition),
                "view": owners.get(partition),
                "projected": shown.get(partition),
                "audit_end": ends.get(partition),
            }
            for partition in over
        ]
        return {
            "items": items,
            "group_state": standing.state,
            "unassigned": standing.unassigned(over),
            "undecided": standing.undecided(over),
            "actions": self._actions,
            "view": view,
        }


def max_key(rows: Iterable[Iterable[tuple[Any, Any]]], *, ascending: bool) -> tuple[int, ...]:
    """The key of the last item, in the order asked for."""
    keys: list[tuple[int, ...]] = [key for part in rows for key, _ in part]
    return max(keys) if ascending else min(keys)


def _dead_letter_key(item: Mapping[str, Any]) -> tuple[int, int, int]:
    return at_ms(item["at"]), item["partition"], item["offset"]


def _done(part: Json) -> dict[int, int]:
    return dict.fromkeys((view["partition"] for view in part["view"]["partitions"]), 0)


def _json(body: Any, status: int) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
