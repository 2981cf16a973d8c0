"""`taskflow flow`: create, start, finish, cancel and resume flows as an operator; look at them.

What a command does is imported when it runs.
"""

import typer

from processor.cli.common.options import FLOW_ID, JSON, WHERE, StatusName, flow_id_of, json_of
from processor.cli.common.runner import WrongUse

app = typer.Typer(help="Create, change and look at flows, as an operator.", no_args_is_help=True)

OWNER = typer.Option(None, "--owner", help="Only flows of this session key.")
STATUS = typer.Option(None, "--status", help="Only flows in this status.")
WAITING = typer.Option(False, "--waiting", help="Only waiting flows, with what they wait for.")
LIMIT = typer.Option(50, "--limit", min=1, max=1_000_000, help="At most so many.")
REVISION = typer.Option(None, "--revision", min=0, help="As it was at this revision.")
AT = typer.Option(
    None, "--at", help="As it was at this time: 2026-11-22T21:02:08Z, or 10m for ten minutes ago."
)
TIMEOUT = typer.Option("30s", "--timeout", help="How long to await the outcome.")
LIFE = typer.Option(
    None, "--life", min=1, help="Of an id that was pruned and created again: which life; the last."
)
FROM = typer.Argument(..., min=0, help="A revision.")
TO = typer.Argument(..., min=0, help="Another one.")
PATH = typer.Argument(..., help="A place in the flow, such as state.items[0].")
UNTIL = typer.Option(
    None, "--until", help="End once it is in this status; exit code 1 if it ends otherwise."
)
USE, LOOK = "Use", "Look"
"""Panels of the help."""


@app.command("create", rich_help_panel=USE)
def create(
    goal: str = typer.Argument(..., help="What it is for, for people."),
    flow_id: str | None = typer.Option(None, "--id", help="Its id, a UUID; random unless given."),
    key: str | None = typer.Option(
        None, "--key", help="A key of yours instead, such as order-17: the same id each time."
    ),
    owner: str | None = typer.Option(
        None, "--owner", help="The session whose commands it takes; you, unless given."
    ),
    controller: str | None = typer.Option(
        None, "--controller", help="The component that drives it; the owner, unless given."
    ),
    origin: str = typer.Option("terminal", "--origin", help="Where the request came from."),
    state: str | None = typer.Option(None, "--state", help="JSON, or @FILE, or @- for stdin."),
    step: str | None = typer.Option(None, "--step", help="Its current step, in your words."),
    running: bool = typer.Option(False, "--running", help="Its work has begun elsewhere."),
    timeout: str = TIMEOUT,
    json: bool = JSON,
) -> None:
    """Create a flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow flow create 'Ship order 17' --key order-17 --state '{"cents": 4200}'`

    Settings: as for `flow list`.
    """
    if flow_id is not None and key is not None:
        raise WrongUse("--id and --key both say which flow; take one.")
    from processor.cli.flow.execute import create_one

    create_one(
        goal,
        flow_id=None if flow_id is None else flow_id_of(flow_id),
        key=key,
        owner=owner,
        running=running,
        timeout=timeout,
        json=json,
        **({} if controller is None else {"controller_id": controller}),
        requester_origin=origin,
        current_step=step,
        state_json=None if state is None else json_of(state, "--state"),
    )


@app.command("start", rich_help_panel=USE)
def start(flow_id: str = FLOW_ID, timeout: str = TIMEOUT, json: bool = JSON) -> None:
    """Start a created flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow flow start 6f1f3a52`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.execute import send_one

    send_one("start_running", flow_id, timeout, json)


@app.command("finish", rich_help_panel=USE)
def finish(
    flow_id: str = FLOW_ID,
    state: str | None = typer.Option(
        None, "--state", help="Merged into its state: JSON, or @FILE, or @- for stdin."
    ),
    timeout: str = TIMEOUT,
    json: bool = JSON,
) -> None:
    """Finish a running flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow flow finish 6f1f3a52 --state '{"shipped": true}'`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.execute import send_one

    fields = {} if state is None else {"final_state": json_of(state, "--state")}
    send_one("finish", flow_id, timeout, json, **fields)


@app.command("watch", rich_help_panel=LOOK)
def watch(
    flow_id: str = FLOW_ID,
    until: StatusName | None = UNTIL,
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Show what happened to one flow, and go on with what comes until it has ended.

    A pipe gets the FlowEvents as JSON lines. A flow that is not there yet is waited for, by its
    full id.

    Example: `taskflow flow watch 6f1f3a52 --until waiting`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.watch import watch_flow

    if not watch_flow(flow_id, until, json=json):
        raise typer.Exit(1)


@app.command("list", rich_help_panel=LOOK)
def list_(
    owner: str | None = OWNER,
    status: StatusName | None = STATUS,
    waiting: bool = WAITING,
    where: list[str] = WHERE,
    limit: int = LIMIT,
    json: bool = JSON,
) -> None:
    """List flows, the newest change first.

    With --waiting: what each waiting flow waits for, until when (UTC), and the time left by this
    machine's clock; the wait that ends soonest first, those without a time last.

    They are read from a worker's tables in TASKFLOW_STATE_DIR where these are up to date, and
    from the topic `state` otherwise. If no broker answers, the tables are shown as they are.
    On a terminal the views at TASKFLOW_VIEWS_HTTP are asked first, if they are up to date.

    A condition is `PATH OPERATOR VALUE`, as in `taskflow bulk`: `id ~ 6f1f3a52`, `goal ~ "week 7"`,
    `state.order.total > 100`, `state.draft`, `wait.kind = steps`. With one every flow is looked at.

    A pipe gets one JSON line for each flow.

    Example: `taskflow flow list --waiting --limit 10`

    Example: `taskflow flow list --where 'state.label = invoice'`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_STATE_DIR,
    TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    if waiting and status not in (None, "waiting"):
        raise WrongUse(f"--waiting and --status {status} leave nothing to show; take one.")
    from processor.cli.flow.execute import list_all

    list_all(owner, status, where, waiting=waiting, limit=limit, json=json)


@app.command("show", rich_help_panel=LOOK)
def show(
    flow_id: str = FLOW_ID,
    revision: int | None = REVISION,
    at: str | None = AT,
    life: int | None = LIFE,
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
    from processor.cli.flow import execute

    if revision is not None or at is not None:
        execute.show_then(flow_id, revision=revision, at=at, life=life, json=json)
    else:
        execute.show_now(flow_id, json=json)


@app.command("history", rich_help_panel=LOOK)
def history(flow_id: str = FLOW_ID, json: bool = JSON) -> None:
    """Show what happened to one flow: who did what, why, and how long it was in each state.

    From the audit topic, and from the outcomes as far as they are kept: these name the command
    of each event and its answer. On a terminal the views at TASKFLOW_VIEWS_HTTP are asked for the
    events first, if they are up to date.

    A pipe gets the FlowEvents as JSON lines, with `explained` added: command, topic, message, the
    status that it `left` and after how long, and what ended a wait (command, external_event,
    timer, timeout, cancel, failure). A pruned flow still has its history. Exit code 1 if nothing
    ever happened to it.

    Example: `taskflow flow history 6f1f3a52-0000-4000-8000-000000000001`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.history import show_history

    show_history(flow_id, json=json)


@app.command("diff", rich_help_panel=LOOK)
def diff(
    flow_id: str = FLOW_ID,
    before: int = FROM,
    after: int = TO,
    life: int | None = LIFE,
    json: bool = JSON,
) -> None:
    """Show what differs in a flow between two revisions: fields, places in its state, steps.

    Steps are under `$.steps`, by run id, as they were when the next revision came. A pipe gets a
    JSON line for each place: path, before, after, without the side where nothing stood.

    Example: `taskflow flow diff 6f1f3a52-0000-4000-8000-000000000001 3 7`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.history import show_difference

    show_difference(flow_id, before, after, life=life, json=json)


@app.command("blame", rich_help_panel=LOOK)
def blame(
    flow_id: str = FLOW_ID, path: str = PATH, life: int | None = LIFE, json: bool = JSON
) -> None:
    """Name the event, the command and the actor that changed a place of a flow last.

    The place is a path of names and indices, in the spelling of `taskflow bulk` or in full:
    `status`, `state.items[0]`, `$.state_json.items[0]`, `$.steps['run 1'].status`. What lies within
    counts: `state` changed when any part of it did. Exit code 1 if nothing ever stood there.

    Example: `taskflow flow blame 6f1f3a52-0000-4000-8000-000000000001 state.price`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.history import show_blame

    show_blame(flow_id, path, life=life, json=json)


@app.command("cancel", rich_help_panel=USE)
def cancel(flow_id: str = FLOW_ID, timeout: str = TIMEOUT, json: bool = JSON) -> None:
    """Cancel a flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow flow cancel 6f1f3a52-0000-4000-8000-000000000001`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.execute import send_one

    send_one("cancel", flow_id, timeout, json)


@app.command("resume", rich_help_panel=USE)
def resume(flow_id: str = FLOW_ID, timeout: str = TIMEOUT, json: bool = JSON) -> None:
    """Resume a waiting flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow flow resume 6f1f3a52-0000-4000-8000-000000000001`

    Settings: as for `flow list`.
    """
    from processor.cli.flow.execute import send_one

    send_one("resume", flow_id, timeout, json)
