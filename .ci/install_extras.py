"""Install what some extras need from requirements.lock: `install_extras.py EXTRA…`, run by the
Python of the environment.

The whole lock has the tools of the tests, too: three times the CPU time, and 360 MB more on disk.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
NAME: Final = "taskflow-kafka"
BUILDS: Final = "hatchling"
"""What makes the project itself installable."""


class Locked(NamedTuple):
    """A package of the lock: its lines, and the packages that need it."""

    lines: str
    via: frozenset[str]


def locked(lock: str) -> dict[str, Locked]:
    """By name, what uv wrote into a lock file."""
    found = {}
    for block in re.split(r"\n(?=[a-z0-9])", lock):
        if named := re.match(r"([a-z0-9._-]+)==", block):
            via = re.findall(r"^ +# +(?:via )?([a-z0-9][a-z0-9._-]*)", block, re.MULTILINE)
            found[named[1]] = Locked(block.rstrip("\n"), frozenset(via))
    return found


def direct(project: Mapping[str, Any], extras: Iterable[str]) -> set[str]:
    """The names of the packages that the project names itself for these extras."""
    wanted, left = list(project["dependencies"]), [*extras]
    while left:
        for requirement in project["optional-dependencies"][left.pop()]:
            if own := re.match(rf"{NAME}\[([a-z,]+)\]", requirement):
                left += own[1].split(",")
            else:
                wanted.append(requirement)
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in wanted)
    return {re.sub(r"[._]", "-", name[0]).lower() for name in names if name}


def needed(lock: str, project: Mapping[str, Any], extras: Iterable[str]) -> dict[str, Locked]:
    """The packages of the lock that these extras need."""
    packages = locked(lock)
    wanted = direct(project, extras) | {BUILDS}
    while more := {
        name for name, one in packages.items() if name not in wanted and one.via & wanted
    }:
        wanted |= more
    return {name: one for name, one in packages.items() if name in wanted}


def main(extras: list[str]) -> int:
    """Install them, with one line that counts; pip's exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    packages = needed((ROOT / "requirements.lock").read_text("utf-8"), project, extras)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{one.lines}\n" for one in packages.values()))
        file.flush()
        # Modules are compiled when they are first imported: few of them are.
        wanted = ["--no-compile", "--require-hashes", "-r", file.name]
        process = subprocess.Popen(
            [*pip, *wanted], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        code = _watch(process, len(packages))
    quiet = ["--quiet", "--no-compile", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    return code or subprocess.call([*pip, *quiet])


def _watch(process: "subprocess.Popen[str]", total: int) -> int:
    """Count what is collected on one line of a terminal; what pip said follows if it failed."""
    said, begun = [], 0
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        begun += line.startswith("Collecting ")
        if sys.stdout.isatty():
            sys.stdout.write(f"\r  {min(begun, total)} of {total} packages")
            sys.stdout.flush()
    if sys.stdout.isatty():
        sys.stdout.write("\r\x1b[K")
    if code := process.wait():
        sys.stderr.write("".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
