"""List and show flows, and send an operator's command to one."""

import getpass
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import orjson
import typer
from rich.console import Console
from rich.text import Text

from processor.cli.common.options import condition_of, duration_ms, since_ms
from processor.cli.common.output import (
    console,
    for_people,
    live_status,
    plain,
    say,
    short,
    status_text,
    table,
    write_json,
    write_line,
)
from processor.cli.common.rows import Column, age, print_rows, short_ids
from processor.cli.common.runner import Refused, run, settings_and_logs
from processor.cli.flow import history as travel
from processor.cli.flow.flow_ids import flow_id_at
from processor.cli.flow.lookup import Found, find_flow, list_flows, list_waiting
from processor.cli.flow.view_lookup import shown_flow, shown_flows
from processor.cli.flow.wait_format import ago_or_in, awaited, step_due, time_left, until
from processor.cli.send.pipeline import accepted, send_as_operator
from processor.contract.flow import Flow, FlowStatus
from processor.contract.outcomes import Outcome, Verdict
from processor.runtime import now_ms
from processor.settings import Settings
from processor.telemetry.terminal import visible

GOAL_SHOWN: Final = 240
"""Characters of a goal that the widest terminal may show in a row."""
_FLOWS: Final = (
    *(Column("id"), Column("status"), Column("changed"), Column("rev", rank=2)),
    *(Column("owner", 8, rank=1), Column("step", 6, rank=3), Column("goal", 36)),
)
_WAITS: Final = (
    *(Column("id"), Column("waits for", 14), Column("until", rank=2), Column("left")),
    *(Column("owner", 8, rank=1), Column("step", 6, rank=3), Column("goal", 28)),
)


def list_all(
    owner: str | None,
    status: str | None,
    where: Sequence[str],
    *,
    waiting: bool,
    limit: int,
    json: bool,
) -> None:
    """Print flows, the newest change first, or `waiting` ones, the soonest end first."""
    meant = [condition_of(text) for text in where]
    wanted = None if status is None else FlowStatus(status)
    settings = settings_and_logs(quiet=True)
    people = for_people(json)

    async def listed() -> list[Flow]:
        if people:
            known = await shown_flows(
                settings, owner=owner, status=wanted, where=meant, waiting=waiting, limit=limit
            )
            if known is not None:
                return known
        if waiting:
            return await list_waiting(settings, owner=owner, where=meant, limit=limit)
        return await list_flows(settings, owner=owner, status=wanted, where=meant, limit=limit)

    for condition in meant:
        say(f"where {condition}")
    flows = run(listed)
    if not people:
        for flow in flows:
            write_line(flow.model_dump_json().encode())
    elif not flows:
        say(
            "There is no such flow."
            if owner or status or waiting or meant
            else "There are no flows yet."
        )
    elif waiting:
        print_waits(console(), flows, now_ms())
    else:
        print_flows(console(), flows, now_ms())


def show_then(
    flow_id: str, *, revision: int | None, at: str | None, life: int | None, json: bool
) -> None:
    """Print a flow as it was. Raises Refused."""
    settings = settings_and_logs(quiet=True)
    wanted = flow_id_at(settings, flow_id)
    then, moment = travel.found_then(settings, wanted, revision=revision, at=at, life=life)
    if for_people(json):
        print_flow(console(), then, moment.at_ms if at is None else since_ms(at, "--at"))
        say(f"As of {moment.event['kind']}, event {moment.event['id']}, {moment.event['at']}.")
    else:
        write_json({**_found_doc(then), "as_of": travel.as_of(moment)})


def show_now(flow_id: str, *, json: bool) -> None:
    """Print a flow as it is. Raises Refused."""
    settings = settings_and_logs(quiet=True)
    wanted = flow_id_at(settings, flow_id)

    async def looked_up() -> Found | None:
        known = await shown_flow(settings, wanted) if for_people(json) else None
        return known or await find_flow(settings, wanted)

    found = run(looked_up)
    if found is None:
        raise _unknown(settings, wanted)
    if not for_people(json):
        write_json(_found_doc(found))
        return
    print_flow(console(), found, now_ms())


def _found_doc(found: Found) -> dict[str, object]:
    return {
        "flow": found.flow,
        "steps": found.steps,
        "last_event_id": found.last_event_id,
        "chain": found.chain,
    }


def print_waits(out: Console, flows: Sequence[Flow], now_ms: int) -> None:
    """Waiting flows, one a row, for people."""
    ids = short_ids(flow.id for flow in flows)
    rows = [
        (
            ids[flow.id],
            short(awaited(flow)),
            until(flow),
            time_left(flow, now_ms),
            flow.owner_session_key,
            flow.current_step,
            short(flow.goal, GOAL_SHOWN),
        )
        for flow in flows
    ]
    print_rows(out, _WAITS, rows)


def print_flow(out: Console, found: Found, now_ms: int) -> None:
    """A flow and its steps, with all their fields, for people."""
    flow = Flow.model_validate_json(orjson.dumps(found.flow))
    rows: list[tuple[str, str | Text]] = []
    for name, value in found.flow.items():
        rows.append((name, _cell(name, value)))
        if name == "wait_json" and value is not None:
            rows.append(("(time left)", time_left(flow, now_ms)))
    rows.append(("last_event_id", str(found.last_event_id)))
    if found.chain:
        rows.append(("chain", found.chain))
    out.print(table(None, ("field", "value"), rows))
    if found.steps:
        out.print(Text("\nsteps, in the order of their creation", style="bold"))
    for step in found.steps:
        for line in _step_lines(step, now_ms):
            out.print(line, overflow="fold")


def _step_lines(step: Mapping[str, Any], now_ms: int) -> Iterator[Text]:
    """All fields of a step; in a table the result would find no room."""
    first = plain(f"{step['run_id']}  ").append_text(status_text(step["status"]))
    yield first.append_text(plain(f"  {step['task']}  {step['runtime']}"))
    execution = step.get("execution")
    if execution is not None:
        tries = f"attempt {execution['attempt']} of {execution['max_attempts']}"
        due = step_due(step, now_ms)
        yield plain(f"  {tries}{f', {due}' if due else ''}")
    if step["child_session_key"] is not None:
        yield plain(f"  by {step['child_session_key']}")
    if execution is not None:
        if (failure := execution["last_failure"]) is not None:
            reason = Text(visible(failure["reason"]), style="red")
            yield plain(f"  last failure {ago_or_in(failure['at'], now_ms)}: ").append_text(reason)
        if execution["progress"] is not None:
            yield plain(f"  progress {orjson.dumps(execution['progress']).decode()}")
        yield plain(f"  input {orjson.dumps(step['input_json']).decode()}")
    if step["result_json"] is not None:
        yield plain(f"  result {orjson.dumps(step['result_json']).decode()}")
    yield plain(f"  created {step['created_at']}  updated {step['updated_at']}")
    yield plain(f"  step id {step['id']}")


def login() -> str:
    """Who sits at this terminal; a container may know no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid-{os.getuid()}"


def print_flows(out: Console, flows: Sequence[Flow], now_ms: int) -> None:
    """Flows, one a row, for people."""
    ids = short_ids(flow.id for flow in flows)
    rows = [
        (
            ids[flow.id],
            live_status(flow.status, flow.cancel_requested),
            age(flow.updated_at, now_ms),
            str(flow.revision),
            flow.owner_session_key,
            flow.current_step,
            short(flow.goal, GOAL_SHOWN),
        )
        for flow in flows
    ]
    print_rows(out, _FLOWS, rows)


def create_one(
    goal: str,
    *,
    flow_id: str | None,
    key: str | None,
    owner: str | None,
    running: bool,
    timeout: str,
    json: bool,
    **fields: Any,
) -> None:
    """Create a flow as this operator, and print its outcome."""
    from processor.client import flow_id_for

    if key is not None:
        flow_id = flow_id_for(key)
    whose = owner or f"operator:{login()}"
    about = {"goal": goal, "owner_session_key": whose, "controller_id": whose}
    given = {name: value for name, value in fields.items() if value is not None}
    kind = "create_mirrored" if running else "create_managed"
    send_one(kind, flow_id or str(uuid4()), timeout, json, **(about | given))


def send_one(kind: str, flow_id: str, timeout: str, json: bool, **fields: Any) -> None:
    """Send a command about a flow or, with `run_id`, a step to `control` as this operator, and
    print its outcome."""
    settings = settings_and_logs(quiet=True)
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    command = {
        "kind": kind,
        "command_id": str(uuid4()),
        "flow_id": flow_id_at(settings, flow_id),
        "issued_by": f"operator:{login()}",
        **fields,
    }
    outcome = run(lambda: send_as_operator(settings, command, timeout_s))
    if for_people(json):
        console().print(plain(_sentence(outcome, fields.get("run_id"))))
    else:
        write_line(outcome.model_dump_json().encode())
    if not accepted(outcome):
        raise typer.Exit(1)


def _sentence(outcome: Outcome, run_id: str | None) -> str:
    if outcome.verdict is Verdict.ACCEPTED:
        if run_id is not None:
            return f"accepted: step {run_id} of {outcome.flow_id}"
        return f"accepted: {outcome.flow_id} is {outcome.status}, revision {outcome.revision}"
    return f"{outcome.verdict} ({outcome.code}): {outcome.message}"


def _unknown(settings: Settings, flow_id: str) -> Refused:
    return Refused(f"There is no flow {flow_id} under {settings.topic_prefix!r}.")


def _cell(name: str, value: object) -> str | Text:
    if name == "status":
        return status_text(str(value))
    return value if isinstance(value, str) else orjson.dumps(value).decode()
