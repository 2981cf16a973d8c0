"""`taskflow worker`: run one processor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from processor.cli.common.options import ENDS_WITH_PARENT
from processor.cli.common.runner import WrongUse, run_until_stopped, settings_and_logs

if TYPE_CHECKING:
    from processor.settings import Address, Settings


def worker(
    processes: int = typer.Option(
        1, "--processes", min=1, help="How many share the worker's partitions; about one a core."
    ),
    with_parent: bool = ENDS_WITH_PARENT,
    process: int | None = typer.Option(
        None, "--process", hidden=True, help="Be this one of a parent's processes."
    ),
) -> None:
    """Run one processor until SIGTERM or Ctrl-C. Start as many as there are partitions.

    The partitions are shared out among all workers of a group. Each worker needs a state
    directory of its own, and an address of its own for TASKFLOW_HTTP. A worker decides in one
    core; `--processes 4` uses four, under one state directory and one address.

    Example: `TASKFLOW_STATE_DIR=/var/lib/taskflow-1 taskflow worker --processes 2`

    Settings: all but those of the embedded broker; TASKFLOW_INSTANCE_ID brings a restarted
    worker back at once.
    """
    settings = settings_and_logs()
    if processes > 1 and settings.standby:
        raise WrongUse(
            "TASKFLOW_STANDBY and --processes do not go together: the processes of a worker share "
            "their tables. Start a worker with a state directory of its own for the standby."
        )

    async def serve(stop: asyncio.Event) -> None:
        from processor.worker.composition import run_worker

        await run_worker(settings, stop=stop)

    async def serve_all(stop: asyncio.Event) -> None:
        from processor.worker.supervisor import run_processes

        await run_processes(settings, processes, stop=stop)

    if process is not None:
        import structlog

        structlog.contextvars.bind_contextvars(process=process)
        run_until_stopped(lambda stop: _serve_as_one_of_many(settings, stop), with_parent=True)
    else:
        run_until_stopped(serve if processes == 1 else serve_all, with_parent=with_parent)


async def _serve_as_one_of_many(settings: Settings, stop: asyncio.Event) -> None:
    """As a plain worker, but the state directory is the parent's, which gets our address."""
    from processor.engine.encoding import encode
    from processor.worker.composition import run_worker

    def on_listening(address: Address | None) -> None:
        typer.echo(encode({"http": str(address) if address else None}).decode())

    await run_worker(settings, stop=stop, lock=False, listening=on_listening)
