"""Show a progress bar on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from processor.ops.verify.ports import Watcher


class Bar(Watcher):
    """Counts units of work, and beside them what is shown as the rate, where that is another thing;
    this one shows nothing."""

    def count(self, things: int) -> None:
        """So many more of what the rate counts."""


@contextmanager
def progress_bar(what: str) -> Iterator[Bar]:
    """Shown while the block runs, if a person looks at standard error."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Shown(progress, what)


class _Shown(Bar):
    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None, things=None)

    def expect(self, units: int) -> None:
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._task, total=total + units)

    def advance(self, units: int) -> None:
        self._progress.advance(self._task, units)

    def count(self, things: int) -> None:
        counted = self._progress.tasks[0].fields["things"] or 0
        self._progress.update(self._task, things=counted + things)

    def at(self, what: str) -> None:
        self._progress.update(self._task, description=what)


class _Rate(ProgressColumn):
    """Things a second since the beginning, or units a second of late."""

    def render(self, task: Task) -> Text:
        things, elapsed_s = task.fields.get("things"), task.elapsed
        speed = things / elapsed_s if things and elapsed_s else task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")
