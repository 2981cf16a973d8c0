"""`taskflow top`: show the views live in the terminal.

What the command needs is imported when it runs.
"""

import typer

from processor.cli.common.runner import settings_and_logs


def top(
    views: str | None = typer.Option(
        None, "--views", help="Where the views are, such as http://views-1:8901."
    ),
    once: bool = typer.Option(False, "--once", help="Show it once, and end."),
    json: bool = typer.Option(False, "--json", help="JSON also on a terminal."),
) -> None:
    """Show what is going on, live: rates, partitions, flows and events.

    It asks the views (`taskflow views`, `taskflow up`). The arrow keys, or j and k, select a flow,
    Enter looks at it. Other keys: a all flows, w waiting, o waits that are over, r running but
    quiet, c asked to cancel, f failed; ? shows all keys, q ends it. A pipe gets one JSON
    line, and so does --json. Exit code 1 if no views answer.

    Example: `taskflow top --views http://views-1:8901`

    Settings: TASKFLOW_VIEWS_HTTP, TASKFLOW_VIEWS_READ_TOKEN.
    """
    from processor.cli.top.execute import show

    show(settings_and_logs(quiet=True), views, once=once, json=json)
