"""Install what some extras need from requirements.lock: `install_extras.py EXTRA…`, run by the
Python of the environment.

The whole lock has the tools of the tests, too: three times the CPU time, and 360 MB more on disk.
What fetches Kafka is installed first, so that two cores and the network are busy at once.
"""

import re
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
NAME: Final = "taskflow-kafka"
BUILDS: Final = "hatchling"
"""What makes the project itself installable."""
FIRST: Final = (BUILDS, "filelock", "jgo", "tenacity")
"""What fetches Kafka imports: it is fetched while the rest is installed."""
PIP: Final = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check")


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
    return with_their_needs(locked(lock), direct(project, extras) | {BUILDS})


def with_their_needs(packages: Mapping[str, Locked], names: Iterable[str]) -> dict[str, Locked]:
    """Those of `packages` that have these names, or are needed by one that has."""
    wanted = {*names}
    while more := {
        name for name, one in packages.items() if name not in wanted and one.via & wanted
    }:
        wanted |= more
    return {name: one for name, one in packages.items() if name in wanted}


class Count:
    """What is collected so far, on one line of a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun = 0
        self._kafka = ""
        self._lock = threading.Lock()

    def package(self) -> None:
        """One more is collected."""
        with self._lock:
            self._begun = min(self._begun + 1, self._total)
            self._show()

    def jars(self, line: str) -> None:
        """How far the fetching of Kafka is, as the embedded broker says it."""
        with self._lock:
            self._kafka = f", Kafka: {line.rpartition(': ')[2].strip()}"
            self._show()

    def clear(self) -> None:
        """Take the line away."""
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[K")

    def _show(self) -> None:
        if sys.stdout.isatty():
            text = f"  {self._begun} of {self._total} packages{self._kafka}"
            sys.stdout.write(f"\r\x1b[K{text}")
            sys.stdout.flush()


def main(extras: list[str]) -> int:
    """Install them, and with the extra `broker` fetch Apache Kafka meanwhile; pip's exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    packages = needed((ROOT / "requirements.lock").read_text("utf-8"), project, extras)
    first = with_their_needs(packages, FIRST)
    rest = {name: one for name, one in packages.items() if name not in first}
    count = Count(len(packages))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(_install, rest, count), pool.submit(_begin, first, count)]
    count.clear()
    return max(one.result() for one in both)


def _begin(packages: Mapping[str, Locked], count: Count) -> int:
    """Install what fetches Kafka and what builds; then the project itself, while Kafka comes."""
    if code := _install(packages, count):
        return code
    own = ["--quiet", "--no-compile", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    if "jgo" not in packages:
        return subprocess.call([*PIP, *own])
    fetch = [sys.executable, "-m", "processor.embedded", "fetch"]
    fetching = subprocess.Popen(fetch, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    code = subprocess.call([*PIP, *own])
    assert fetching.stderr is not None
    for line in fetching.stderr:
        count.jars(line)
    # Whether it came is the broker's to say: it fetches what is missing, and names the reason.
    fetching.wait()
    return code


def _install(packages: Mapping[str, Locked], count: Count) -> int:
    """Install exactly these; what pip said follows if it failed."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{one.lines}\n" for one in packages.values()))
        file.flush()
        # Modules are compiled when they are first imported: few of them are. The lock is complete:
        # there is nothing to resolve.
        wanted = ["--no-compile", "--no-deps", "--require-hashes", "-r", file.name]
        process = subprocess.Popen(
            [*PIP, *wanted], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Collecting "):
                count.package()
        if code := process.wait():
            sys.stderr.write("".join(said))
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
