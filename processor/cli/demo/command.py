"""`taskflow demo`: the main job in one command, from its own broker to a flow's history.

What the command needs is imported when it runs.
"""

import typer

from processor.cli.common.runner import settings_and_logs


def demo(
    keep: bool = typer.Option(False, "--keep", help="Leave it all up until Ctrl-C, to look at."),
) -> None:
    """Show the main job in one command; nothing is left running.

    It starts an embedded Apache Kafka on a free port, makes the topics, starts a worker as a
    process of its own, sends it over 200 commands about 50 flows, some of them wrong on
    purpose, and shows what comes of them. One flow only waits: until a time, for an event that
    comes too late, for one that comes, and until it is cancelled. The views, another process,
    show what is left of it. A flow hands out three steps to executors, one of which is killed. The
    first run on a machine fetches Kafka.

    Example: `taskflow demo --keep`

    Settings: TASKFLOW_CACHE_DIR, TASKFLOW_BROKER_HEAP, TASKFLOW_VIEWS_HTTP with `--keep`.
    """
    from processor.cli.demo.execute import show_demo
    from processor.embedded.environment import need_extra

    need_extra()
    show_demo(settings_and_logs(quiet=True), keep=keep)
