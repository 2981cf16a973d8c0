"""`taskflow demo`: the main job in one command, from its own broker to a flow's history.

What the command needs is imported when it runs.
"""

import os
from typing import Final

import typer

from processor.cli.common.runner import settings_and_logs

ABOUT: Final = (
    "A real Kafka, a worker, executors and 280 commands, some wrong on purpose.",
    "It takes about 10 s, twice that where Kafka is to be fetched first.",
)


def demo(
    keep: bool = typer.Option(False, "--keep", help="Leave it all up until Ctrl-C, to look at."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Print every event and history."),
) -> None:
    """Show the main job in one command; nothing is left running.

    It starts an embedded Apache Kafka on a free port, makes the topics, starts a worker as a
    process of its own, sends it over 200 commands about 50 flows, some of them wrong on
    purpose, and says what comes of them in 40 lines; --verbose shows all of it. One flow only
    waits: until a time, for an event that comes too late, for one that comes, and until it is
    cancelled. A flow hands out three steps to executors, one of which is killed. The views, another
    process, count what they have seen. The first run on a machine fetches Kafka.

    Example: `taskflow demo --keep`

    Settings: TASKFLOW_CACHE_DIR, TASKFLOW_BROKER_HEAP, TASKFLOW_VIEWS_HTTP with `--keep`.
    """
    from processor.embedded.environment import JIT_VARIABLE, need_extra

    need_extra()
    for line in ABOUT:
        typer.echo(line)
    # A broker that lives for seconds never earns back what the JVM's second compiler costs.
    os.environ.setdefault(JIT_VARIABLE, "quick")
    from processor.cli.demo.execute import show_demo

    show_demo(settings_and_logs(quiet=True), keep=keep, verbose=verbose)
