"""Ask for confirmation before a command changes something."""

from dataclasses import dataclass
from typing import Final

import typer

from processor.cli.common.output import say, somebody_to_ask
from processor.cli.common.runner import WrongUse

DRY_RUN: Final = typer.Option(False, "--dry-run", help="Only show what would be done.")
YES: Final = typer.Option(False, "--yes", "-y", help="Do not ask.")


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Whether to go on after what was shown. Raises WrongUse without a terminal to ask at."""

    dry_run: bool
    yes: bool
    no_terminal: str = "There is no terminal to ask at: take --yes, or --dry-run to look first."

    def __post_init__(self) -> None:
        if not (self.dry_run or self.yes or somebody_to_ask()):
            raise WrongUse(self.no_terminal)

    @property
    def shows(self) -> bool:
        """Whether to show what would be done."""
        return self.dry_run or not self.yes

    def before(self, question: str, nothing: str = "Nothing was changed.") -> bool:
        """False for a dry run. Raises typer.Exit if the answer is no."""
        if self.dry_run:
            say(nothing)
            return False
        if not self.yes and not typer.confirm(question, err=True):
            say(nothing)
            raise typer.Exit(1)
        return True
