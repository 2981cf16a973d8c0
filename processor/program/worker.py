"""`taskflow worker`: one processor."""

import asyncio

import typer

from processor.program.running import run_until_stopped, settings_and_logs, stop_with_parent


def worker(
    with_parent: bool = typer.Option(
        False, "--with-parent", hidden=True, help="Stop when standard input ends."
    ),
) -> None:
    """Run one processor until SIGTERM or Ctrl-C. Start as many as there are partitions.

    The partitions are shared out among all workers of a group. Each worker needs a state
    directory of its own, and an address of its own for TASKFLOW_HTTP.

    Example: `TASKFLOW_STATE_DIR=/var/lib/taskflow-1 taskflow worker`

    Settings: all but those of the embedded broker; TASKFLOW_INSTANCE_ID brings a restarted
    worker back at once.
    """
    settings = settings_and_logs()

    async def serve(stop: asyncio.Event) -> None:
        from processor.bootstrap import run_worker

        if with_parent:
            stop_with_parent(stop)
        await run_worker(settings, stop=stop)

    run_until_stopped(serve)
