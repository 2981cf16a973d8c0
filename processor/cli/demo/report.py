"""Show the demo: a line for each stage as it ends, one that moves meanwhile, and the results."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from processor.cli.common.output import status_text
from processor.cli.common.rows import ID_LENGTH
from processor.cli.flow.event_text import print_events

LINES_MAX = 40
"""Of all that it prints without --verbose."""


class DemoReport:
    """What is printed on `out`; with `verbose` each event as it comes, and every history."""

    def __init__(self, out: Console, *, verbose: bool) -> None:
        self.out = out
        self.verbose = verbose
        self._status: Status | None = None
        self._what = ""

    @contextmanager
    def stage(self, what: str) -> Iterator[list[str]]:
        """`what` moves on a terminal until the block ends; then what the block has put into the
        list stands there, with how long it took."""
        done: list[str] = []
        began_s = time.monotonic()
        moves = self.out.is_terminal and not self.verbose
        self._what = what
        self._status = Status(Text(f"{what} ..."), console=self.out) if moves else None
        if not moves:
            self.out.print(Text(f"{what} ...", style="dim"))
        try:
            with self._status or nullcontext():
                yield done
        finally:
            self._status = None
        for nth, line in enumerate(done):
            took = f"  {time.monotonic() - began_s:.1f} s" if nth == 0 else ""
            mark = "✓ " if nth == 0 else "  "
            self.out.print(Text.assemble((mark, "green"), line, (took, "dim")))

    def progress(self, line: str) -> None:
        """How far the fetching of Kafka is; from any thread."""
        if self._status is not None:
            text = Text(line)
            text.truncate(self.out.width - 4, overflow="ellipsis")
            self._status.update(text)
        elif self.verbose or line.endswith("done"):
            self.out.print(Text(line, style="dim"))

    def event(self, event: dict[str, Any]) -> None:
        """A FlowEvent as it comes."""
        line = Text(f"{event['at'][11:19]} {event['flow_id'][:ID_LENGTH]} ", style="dim")
        line.append(f"{event['kind']:<17}", style="bold not dim")
        line.append_text(status_text(f"{event['status']:<10}"))
        line.append(f"r{event['revision']:<3}{event['actor']}", style="not dim")
        if self.verbose:
            self.out.print(Text("   ").append_text(line), no_wrap=True, overflow="ellipsis")
        elif self._status is not None:
            line.truncate(max(20, self.out.width - len(self._what) - 10), overflow="ellipsis")
            self._status.update(Text(f"{self._what}: ").append_text(line))

    def history(self, title: str, events: Sequence[bytes]) -> None:
        """What happened to one flow, below a title."""
        self.out.print(Text(title, style="bold"))
        print_events(self.out, events)

    def only_verbose(self, *lines: str | Text) -> None:
        """Details."""
        if self.verbose:
            for line in lines:
                self.out.print(line)
