"""`taskflow flow`: look at flows, and cancel or resume them as an operator."""

import getpass
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import orjson
import typer
from rich.console import Console
from rich.text import Text

from processor.cli.common.options import FLOW_ID, JSON, duration_ms, flow_id_of, since_ms
from processor.cli.common.output import (
    console,
    for_people,
    plain,
    print_rows,
    say,
    short,
    status_text,
    table,
    write_json,
    write_line,
)
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs
from processor.cli.flow import history as travel
from processor.cli.flow.lookup import Found, find_flow, list_flows, list_waiting
from processor.cli.flow.view_lookup import shown_flow, shown_flows
from processor.cli.flow.wait_format import awaited, time_left, until
from processor.cli.send import accepted, send_as_operator
from processor.contract.flow import Flow, FlowStatus
from processor.contract.outcomes import Outcome, Verdict
from processor.settings import Settings

app = typer.Typer(
    help="Look at flows, and cancel or resume them as an operator.", no_args_is_help=True
)

OWNER = typer.Option(None, "--owner", help="Only flows of this session key.")
STATUS = typer.Option(None, "--status", help="Only flows in this status.")
WAITING = typer.Option(False, "--waiting", help="Only waiting flows, with what they wait for.")
LIMIT = typer.Option(50, "--limit", min=1, max=1_000_000, help="At most so many.")
REVISION = typer.Option(None, "--revision", min=0, help="As it was at this revision.")
AT = typer.Option(
    None, "--at", help="As it was at this time: 2026-11-22T21:02:08Z, or 10m for ten minutes ago."
)
TIMEOUT = typer.Option("30s", "--timeout", help="How long to await the outcome.")


@app.command("list")
def list_(
    owner: str | None = OWNER,
    status: FlowStatus | None = STATUS,
    waiting: bool = WAITING,
    limit: int = LIMIT,
    json: bool = JSON,
) -> None:
    """List flows, the newest change first.

    With --waiting: what each waiting flow waits for, until when (UTC), and the time left by this
    machine's clock; the wait that ends soonest first, those without a time last.

    They are read from a worker's tables in TASKFLOW_STATE_DIR where these are up to date, and
    from the topic `state` otherwise. If no broker answers, the tables are shown as they are.
    On a terminal the views at TASKFLOW_VIEWS_HTTP are asked first, if they are up to date.

    A pipe gets one JSON line for each flow.

    Example: `taskflow flow list --waiting --limit 10`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_STATE_DIR,
    TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    if waiting and status not in (None, FlowStatus.WAITING):
        raise WrongUse(f"--waiting and --status {status} leave nothing to show; take one.")
    settings = settings_and_logs(quiet=True)
    people = for_people(json)

    async def listed() -> list[Flow]:
        known = people and await shown_flows(
            settings, owner=owner, status=status, waiting=waiting, limit=limit
        )
        if isinstance(known, list):
            return known
        if waiting:
            return await list_waiting(settings, owner=owner, limit=limit)
        return await list_flows(settings, owner=owner, status=status, limit=limit)

    flows = run(listed)
    if not people:
        for flow in flows:
            write_line(flow.model_dump_json().encode())
    elif not flows:
        say("There is no such flow." if owner or status or waiting else "There are no flows yet.")
    elif waiting:
        print_waits(console(), flows, _now_ms())
    else:
        _print_flows(console(), flows)


@app.command("show")
def show(
    flow_id: str = FLOW_ID,
    revision: int | None = REVISION,
    at: str | None = AT,
    life: int | None = travel.LIFE,
    json: bool = JSON,
) -> None:
    """Show one flow with its state, its wait and its steps. Exit code 1 if there is none.

    The time left of its wait is by this machine's clock. With --revision or --at: as the flow was
    then, folded from its events; that works for pruned ones, too, and the time left is as of then.

    Example: `taskflow flow show 6f1f3a52-0000-4000-8000-000000000001`

    Settings: as for `flow list`.
    """
    if revision is not None and at is not None:
        raise WrongUse("--revision and --at both say when; take one.")
    if life is not None and revision is None:
        raise WrongUse("--life says of which life the --revision is.")
    settings = settings_and_logs(quiet=True)
    wanted = flow_id_of(flow_id)
    if revision is not None or at is not None:
        then, moment = travel.found_then(settings, wanted, revision=revision, at=at, life=life)
        if for_people(json):
            print_flow(console(), then, moment.at_ms if at is None else since_ms(at, "--at"))
            say(f"As of {moment.event['kind']}, event {moment.event['id']}, {moment.event['at']}.")
        else:
            write_json({**_found_doc(then), "as_of": travel.as_of(moment)})
        return

    async def looked_up() -> Found | None:
        known = await shown_flow(settings, wanted) if for_people(json) else None
        return known or await find_flow(settings, wanted)

    found = run(looked_up)
    if found is None:
        raise _unknown(settings, wanted)
    if not for_people(json):
        write_json(_found_doc(found))
        return
    print_flow(console(), found, _now_ms())


def _found_doc(found: Found) -> dict[str, object]:
    return {
        "flow": found.flow,
        "steps": found.steps,
        "last_event_id": found.last_event_id,
        "chain": found.chain,
    }


app.command("history")(travel.history)
app.command("diff")(travel.diff)
app.command("blame")(travel.blame)


@app.command("cancel")
def cancel(flow_id: str = FLOW_ID, timeout: str = TIMEOUT, json: bool = JSON) -> None:
    """Cancel a flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow flow cancel 6f1f3a52-0000-4000-8000-000000000001`

    Settings: as for `flow list`.
    """
    _as_operator("cancel", flow_id, timeout, json)


@app.command("resume")
def resume(flow_id: str = FLOW_ID, timeout: str = TIMEOUT, json: bool = JSON) -> None:
    """Resume a waiting flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow flow resume 6f1f3a52-0000-4000-8000-000000000001`

    Settings: as for `flow list`.
    """
    _as_operator("resume", flow_id, timeout, json)


def print_waits(out: Console, flows: Sequence[Flow], now_ms: int) -> None:
    """Waiting flows, one a row, for people."""
    rows = [
        (
            flow.id,
            short(awaited(flow)),
            until(flow),
            time_left(flow, now_ms),
            flow.owner_session_key,
            flow.current_step,
            short(flow.goal),
        )
        for flow in flows
    ]
    print_rows(out, ("id", "waits for", "until", "left", "owner", "step", "goal"), rows)


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
        for line in _step_lines(step):
            out.print(line, overflow="fold")


def _step_lines(step: Mapping[str, Any]) -> Iterator[Text]:
    """All fields of a step; in a table the result would find no room."""
    first = plain(f"{step['run_id']}  ").append_text(status_text(step["status"]))
    yield first.append_text(plain(f"  {step['task']}  {step['runtime']}"))
    if step["child_session_key"] is not None:
        yield plain(f"  by {step['child_session_key']}")
    yield plain(f"  created {step['created_at']}  updated {step['updated_at']}  id {step['id']}")
    if step["result_json"] is not None:
        yield plain(f"  result {orjson.dumps(step['result_json']).decode()}")


def print_history(out: Console, events: Sequence[bytes]) -> None:
    """FlowEvents, one a row, for people."""
    rows = []
    for raw in events:
        event = orjson.loads(raw)
        payload = event["payload_json"]
        rows.append(
            (
                event["at"][:23].replace("T", " "),
                Text(event["kind"], style="bold"),
                status_text(event["status"]),
                str(event["revision"]),
                event["actor"],
                short(orjson.dumps(payload).decode()) if payload else "",
            )
        )
    columns = ("at", "event", "status", "rev", "by", "payload")
    print_rows(out, columns, rows)


def login() -> str:
    """Who sits at this terminal; a container may know no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid-{os.getuid()}"


def _print_flows(out: Console, flows: Sequence[Flow]) -> None:
    rows = [
        (
            flow.id,
            status_text(flow.status + (" (cancel requested)" if flow.cancel_requested else "")),
            str(flow.revision),
            flow.updated_at[:19].replace("T", " "),
            flow.owner_session_key,
            flow.current_step,
            short(flow.goal),
        )
        for flow in flows
    ]
    print_rows(out, ("id", "status", "rev", "updated", "owner", "step", "goal"), rows)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _as_operator(kind: str, flow_id: str, timeout: str, json: bool) -> None:
    settings = settings_and_logs(quiet=True)
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    command = {
        "kind": kind,
        "command_id": str(uuid4()),
        "flow_id": flow_id_of(flow_id),
        "issued_by": f"operator:{login()}",
    }
    outcome = run(lambda: send_as_operator(settings, command, timeout_s))
    if for_people(json):
        console().print(_sentence(outcome), markup=False)
    else:
        write_line(outcome.model_dump_json().encode())
    if not accepted(outcome):
        raise typer.Exit(1)


def _sentence(outcome: Outcome) -> str:
    if outcome.verdict is Verdict.ACCEPTED:
        return f"accepted: {outcome.flow_id} is {outcome.status}, revision {outcome.revision}"
    return f"{outcome.verdict} ({outcome.code}): {outcome.message}"


def _unknown(settings: Settings, flow_id: str) -> Refused:
    return Refused(f"There is no flow {flow_id} under {settings.topic_prefix!r}.")


def _cell(name: str, value: object) -> str | Text:
    if name == "status":
        return status_text(str(value))
    return value if isinstance(value, str) else orjson.dumps(value).decode()
