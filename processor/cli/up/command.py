"""`taskflow up`: run broker, worker and views on this machine until Ctrl-C.

What the command needs is imported when it runs.
"""

import os

import typer

from processor.cli.common.runner import run_until_stopped, settings_and_logs


def up(
    use_broker: bool = typer.Option(
        False,
        "--use-broker",
        help="Use the broker at TASKFLOW_BOOTSTRAP_SERVERS instead of an embedded one.",
    ),
    signals: bool = typer.Option(
        False, "--signals", help="Run `taskflow signals`, too, and make its topics."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", "-v", help="Show what worker and views log; else only warnings."
    ),
) -> None:
    """Run an embedded broker, a worker and the views until Ctrl-C. The data is kept.

    A broker that already answers at TASKFLOW_BOOTSTRAP_SERVERS is used only with `--use-broker`,
    or if you say so when asked. Data lives in TASKFLOW_STATE_DIR, the broker's in its folder
    `broker`. The embedded broker and the views are started again if their processes end.

    Example: `taskflow up`

    Settings: all.
    """
    from processor.cli.up.execute import serve

    if not verbose:
        # Also of the views, whose process gets this environment.
        os.environ.setdefault("TASKFLOW_LOG_LEVEL", "warning")
    settings = settings_and_logs()
    run_until_stopped(lambda stop: serve(settings, stop, use_broker=use_broker, signals=signals))
