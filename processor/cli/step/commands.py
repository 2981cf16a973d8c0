"""`taskflow step`: schedule, look at, retry, cancel and do managed steps.

What a command needs is imported when it runs.
"""

import asyncio
import shutil
from typing import Any, Literal

import orjson
import typer
from rich.text import Text

from processor.cli.common.options import (
    ENDS_WITH_PARENT,
    FLOW_ID,
    JSON,
    OUTCOME_TIMEOUT,
    ago_ms,
    duration_ms,
    json_of,
)
from processor.cli.common.output import (
    console,
    for_people,
    say,
    short,
    status_text,
    table,
    write_json,
)
from processor.cli.common.rows import Column, print_rows, short_ids
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs, stop_with_parent
from processor.runtime import now_ms, unless_stopped

app = typer.Typer(
    help="Schedule, look at, retry, cancel and do managed steps.", no_args_is_help=True
)

StepStatusName = Literal["pending", "running", "succeeded", "failed", "cancelled"]
"""A StepStatus by its value: the help needs no models."""
RUN_ID = typer.Argument(..., help="The step's run id.")
TASK = typer.Option(None, "--task", help="Only steps of this task.")
STATUS = typer.Option(None, "--status", help="Only steps in this status.")
HOLDER = typer.Option(None, "--holder", help="Only steps that this executor holds.")
FAILURE = typer.Option(None, "--failure", help="Only steps whose last failure has these words.")
COMMAND = typer.Argument(..., help="After --: the program and its arguments.")
TASKS = typer.Option(..., "--task", help="Do the steps of this task; repeatable.")


@app.command("schedule")
def schedule(
    flow_id: str = FLOW_ID,
    run_id: str = RUN_ID,
    task: str = typer.Option(..., "--task", help="What is to be done: executors know it by this."),
    input_: str = typer.Option("null", "--input", help="JSON, or @FILE, or @- for stdin."),
    not_before: str | None = typer.Option(
        None, "--not-before", help="Offer it then: a time, or a duration from now such as 10m."
    ),
    timeout_at: str | None = typer.Option(
        None, "--timeout-at", help="Fail it then: a time, or a duration from now."
    ),
    max_attempts: int = typer.Option(3, "--max-attempts", min=1, max=100, help="Tries in all."),
    lease: str = typer.Option("5m", "--lease", help="How long an executor holds it unextended."),
    backoff: str = typer.Option("1s", "--backoff", help="Pause after the first failed attempt."),
    timeout: str = OUTCOME_TIMEOUT,
    json: bool = JSON,
) -> None:
    """Schedule a managed step of a flow, as an operator. Exit code 1 if the processor refuses.

    The command goes to the control topic, as `operator:{login}`, and needs a running worker.

    Example: `taskflow step schedule 6f1f3a52-0000-4000-8000-000000000001 mail-7 --task classify
    --input '{"mail": 7}'`

    Settings: as for `taskflow flow list`.
    """
    from processor.cli.flow.execute import send_one

    fields: dict[str, Any] = {
        "task": task,
        "input_json": json_of(input_, "--input"),
        "max_attempts": max_attempts,
        "lease_ms": duration_ms(lease, "--lease"),
        "backoff_ms": duration_ms(backoff, "--backoff"),
    }
    if not_before is not None:
        fields["not_before"] = _time(not_before, "--not-before")
    if timeout_at is not None:
        fields["timeout_at"] = _time(timeout_at, "--timeout-at")
    send_one("schedule_step", flow_id, timeout, json, run_id=run_id, **fields)


@app.command("list")
def list_(
    flow: str | None = typer.Option(None, "--flow", help="Only steps of this flow."),
    task: str | None = TASK,
    status: StepStatusName | None = STATUS,
    holder: str | None = HOLDER,
    older_than: str | None = typer.Option(
        None, "--older-than", help="Only steps that have not changed for this long, such as 10m."
    ),
    failure: str | None = FAILURE,
    limit: int = typer.Option(50, "--limit", min=1, max=1_000_000, help="At most so many."),
    json: bool = JSON,
) -> None:
    """List managed steps, the newest change first. A pipe gets one JSON line for each step.

    They are read from a worker's tables in TASKFLOW_STATE_DIR where these are up to date, and
    from the topic `state` otherwise.

    Example: `taskflow step list --task classify --status running --older-than 10m`

    Settings: as for `taskflow flow list`.
    """
    from processor.cli.flow.flow_ids import flow_id_at
    from processor.cli.flow.wait_format import ago_or_in
    from processor.cli.step.lookup import list_steps
    from processor.contract.steps import StepStatus
    from processor.contract.values import instant
    from processor.ops.step_filter import StepFilter, failure_of

    settings = settings_and_logs(quiet=True)
    before = None if older_than is None else instant(ago_ms(older_than, "--older-than"))
    meant = StepFilter(
        flow_id=None if flow is None else flow_id_at(settings, flow),
        task=task,
        statuses=None if status is None else {StepStatus(status)},
        holder=holder,
        before=before,
        failure=failure,
    )
    steps = run(lambda: list_steps(settings, meant, limit=limit))
    if not for_people(json):
        for step in steps:
            write_json(step)
    elif not steps:
        say("No steps match.")
    else:
        columns = (
            *(Column("flow"), Column("run", 10), Column("status"), Column("try")),
            *(Column("due", 12), Column("task", 8), Column("last failure", 14, rank=1)),
            Column("holder", 8, rank=2),
        )
        ids, now = short_ids(step["flow_id"] for step in steps), now_ms()
        rows = [
            (
                ids[step["flow_id"]],
                step["run_id"],
                status_text(step["status"]),
                f"{step['execution']['attempt']}/{step['execution']['max_attempts']}",
                ago_or_in(due, now) if (due := step["execution"]["due_at"]) else "",
                step["task"],
                short(failure_of(step), 200),
                step["child_session_key"] or "",
            )
            for step in steps
        ]
        print_rows(console(), columns, rows)


@app.command("show")
def show(flow_id: str = FLOW_ID, run_id: str = RUN_ID, json: bool = JSON) -> None:
    """Show one step with its attempts and its lease. Exit code 1 if there is none.

    Example: `taskflow step show 6f1f3a52-0000-4000-8000-000000000001 mail-7`

    Settings: as for `taskflow flow list`.
    """
    from processor.cli.flow.flow_ids import flow_id_at
    from processor.cli.step.lookup import find_step

    settings = settings_and_logs(quiet=True)
    wanted = flow_id_at(settings, flow_id)
    step = run(lambda: find_step(settings, wanted, run_id))
    if step is None:
        raise Refused(f"There is no step {run_id!r} of flow {wanted}.")
    if not for_people(json):
        write_json(step)
        return
    rows: list[tuple[str, str | Text]] = []
    for name, value in step.items():
        if name == "execution":
            rows += [(f"  {field}", _cell(inner)) for field, inner in value.items()]
        elif name == "status":
            rows.append((name, status_text(value)))
        else:
            rows.append((name, _cell(value)))
    console().print(table(None, ("field", "value"), rows))


@app.command("retry")
def retry(
    flow_id: str = FLOW_ID,
    run_id: str = RUN_ID,
    attempts: int = typer.Option(1, "--attempts", min=1, max=100, help="Tries from here on."),
    timeout: str = OUTCOME_TIMEOUT,
    json: bool = JSON,
) -> None:
    """Offer a step again that is pending, failed or cancelled, as an operator.

    Exit code 1 if the processor refuses.

    Example: `taskflow step retry 6f1f3a52-0000-4000-8000-000000000001 mail-7`

    Settings: as for `taskflow flow list`.
    """
    from processor.cli.flow.execute import send_one

    send_one("retry_step", flow_id, timeout, json, run_id=run_id, attempts=attempts)


@app.command("cancel")
def cancel(
    flow_id: str = FLOW_ID, run_id: str = RUN_ID, timeout: str = OUTCOME_TIMEOUT, json: bool = JSON
) -> None:
    """Cancel a step that is pending or running, as an operator.

    Its executor learns of it when it extends its lease. Exit code 1 if the processor refuses.

    Example: `taskflow step cancel 6f1f3a52-0000-4000-8000-000000000001 mail-7`

    Settings: as for `taskflow flow list`.
    """
    from processor.cli.flow.execute import send_one

    send_one("cancel_step", flow_id, timeout, json, run_id=run_id)


@app.command("run", context_settings={"ignore_unknown_options": True})
def run_(
    command: list[str] = COMMAND,
    task: list[str] = TASKS,
    group: str | None = typer.Option(
        None, "--group", help="Consumer group that shares the work. Default: the tasks' names."
    ),
    concurrency: int = typer.Option(1, "--concurrency", min=1, help="Steps at a time."),
    drain: str = typer.Option(
        "30s", "--drain", help="How long running steps may take after SIGTERM or Ctrl-C."
    ),
    with_parent: bool = ENDS_WITH_PARENT,
) -> None:
    """Do the steps of a task with any program, until SIGTERM or Ctrl-C.

    The program gets the step's input as JSON on stdin, and STEP_FLOW_ID, STEP_RUN_ID, STEP_TASK,
    STEP_ATTEMPT, STEP_MAX_ATTEMPTS and STEP_KEY in its environment. What it prints is the result,
    as JSON where it is JSON. An exit code other than 0 fails the attempt, with the end of what it
    wrote to stderr as the reason. A step may be done more than once: STEP_KEY names it in all its
    attempts.

    Example: `taskflow step run --task classify -- jq '{kind: .mail}'`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.cli.step.executor import run_program
    from processor.client import Step, StepWorker

    settings = settings_and_logs(quiet=True)
    drain_s = duration_ms(drain, "--drain") / 1000
    if shutil.which(command[0]) is None:
        raise WrongUse(f"{command[0]} is no program that can be run.")

    async def handle(step: Step) -> Any:
        try:
            result = await run_program(step, command)
        except Exception as error:
            say(f"{step.step_key} attempt {step.attempt} failed: {error}")
            raise
        say(f"{step.step_key} attempt {step.attempt} done")
        return result

    async def work() -> None:
        try:
            worker = StepWorker(
                dict.fromkeys(task, handle),
                group=group or f"{settings.topic_prefix}.steps.{'+'.join(sorted(task))}",
                settings=settings,
                concurrency=concurrency,
                drain_timeout_s=drain_s,
            )
        except ValueError as error:
            raise WrongUse(f"{error}.") from None
        stop = asyncio.Event()
        if with_parent:
            stop_with_parent(stop)
        async with worker:
            say(f"doing steps of {', '.join(task)} as {worker.issued_by}; Ctrl-C ends")
            await unless_stopped(worker.run(), stop)

    run(work)


def _time(text: str, option: str) -> str:
    """A time, or a duration from now. Raises WrongUse."""
    from processor.contract.values import instant, parse_timestamp

    try:
        return instant(parse_timestamp(text))
    except ValueError:
        ahead_ms = duration_ms(text, option)
    try:
        return instant(now_ms() + ahead_ms)
    except OverflowError:
        raise WrongUse(f"{option} is {text!r}, which ends after the year 9999.") from None


def _cell(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
