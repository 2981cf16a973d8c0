"""A group of commands whose modules are imported when a command is run, and not for its help."""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

import typer.main
from typer.core import TyperCommand, TyperGroup

KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("timeout", "older_than", "grace", "window", "horizon"), "DURATION"),
    **dict.fromkeys(("since", "until", "at"), "TIME"),
}
"""What the values of options of these names are, in all commands."""
HELP_OPTIONS: Final = ["-h", "--help"]


class LazyCommand(NamedTuple):
    """A command as its group lists it. `module` has it as `app` if it is a group itself, else as a
    function of the command's name; `summary` is the first sentence of its help."""

    module: str
    panel: str
    summary: str


class LazyGroup(TyperGroup):
    """Commands of `entries`, which a subclass sets. In help and completion a placeholder stands for
    a command; the command itself is loaded once it is chosen."""

    entries: Mapping[str, LazyCommand] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in self.entries.items():
            self.commands[name] = TyperCommand(
                name=name,
                help=entry.summary,
                rich_markup_mode="markdown",
                rich_help_panel=entry.panel,
            )

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own options, `--help` included."""
        options = super().get_params(ctx)
        _prepare(options)
        return list(options)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that the first of `args` names, loaded, and the other arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, (name and load(name, self.entries[name])) or command, rest


def load(name: str, entry: LazyCommand) -> Any:
    """Import a command's module and make the command of it."""
    module = import_module(entry.module)
    app: typer.Typer | None = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        app.command(name)(getattr(module, name))
        command: Any = typer.main.get_command(app)
    else:
        command = typer.main.get_group(app)
        command.name = name
    for one in (command, *getattr(command, "commands", {}).values()):
        # Typer's own default keeps line breaks of the source and takes [brackets] for styles.
        one.rich_markup_mode = "markdown"
        _prepare(one.get_params(typer.Context(one, help_option_names=HELP_OPTIONS)))
    return command


def _prepare(parameters: Iterable[Any]) -> None:
    """Show in help what a value is, and nothing for a flag, where Typer shows the Python type.

    A group's own options are read before its command's help is shown: those that are not given
    are not converted, for Typer imports pydantic for that.
    """
    for parameter in parameters:
        one = parameter.nargs == 1 and not getattr(parameter, "multiple", False)
        if one and parameter.callback is None and not parameter.required:
            parameter.process_value = _unless_missing(parameter.process_value)
        if parameter.param_type_name == "option":
            parameter.metavar = _metavar(parameter)
            if parameter.is_flag and parameter.default is None:
                # Typer's own flags: None would be converted, by pydantic, in each call.
                parameter.default = False
        elif not parameter.type_descriptor.is_choice:
            parameter.display_type_rich = _no_type


def _unless_missing(process: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda ctx, value: None if value is None else process(ctx, value)


def _no_type(ctx: Any) -> None:
    """An argument's name says what it is."""


def _metavar(option: Any) -> str:
    kind = option.type_descriptor
    if option.metavar is not None or option.is_flag:
        return option.metavar or ""
    if kind.is_choice:
        return " | ".join(map(str, kind.choices))
    if option.name in KINDS:
        return KINDS[option.name]
    annotation = kind.annotation
    while getattr(annotation, "__args__", None):  # of a list, what it lists
        annotation = annotation.__args__[0]
    return {"int": "N", "float": "N", "Path": "FILE"}.get(annotation.__name__, "TEXT")
