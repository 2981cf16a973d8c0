"""Figures as they are kept: a JSON file for each run, with where, when and how it measured."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.running import machine

KEPT: Final = Path(__file__).parent / "results"
"""Those that the README and the plots show."""
PLOTS: Final[Mapping[str, str]] = {
    "throughput-peers": "peers-throughput",
    "latency-peers": "peers-latency",
    "scaling": "scaling",
    "flows": "flows",
}
"""Which benchmark each plot is drawn from."""
LIBRARIES: Final = ("taskflow-kafka", "aiokafka", "aiosqlite", "orjson", "pydantic", "uvloop")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


@dataclass(frozen=True)
class Run:
    """One run of the benchmark `of`; each of `rows` is what was measured once, in that order."""

    of: str
    arguments: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    at: str = field(default_factory=_now)
    """When it ended."""
    machine: str = field(default_factory=machine)
    versions: Mapping[str, str] = field(default_factory=_versions)
    load_average: float = field(default_factory=lambda: os.getloadavg()[0])
    """At its end, of one minute: the run's own, and whatever else there was."""

    def keep(self, folder: Path | None) -> None:
        """Write it to a file of its own; nowhere, if there is no `folder`."""
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        at = self.at.replace(":", "").replace("-", "")
        (folder / f"{self.of}-{at}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def arguments(namespace: Any) -> dict[str, Any]:
    """What a program was told, as JSON can hold it."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(namespace).items()
    }


def kept(of: str, folder: Path = KEPT) -> list[Run]:
    """The runs of a benchmark that lie in `folder`, oldest first."""
    return [Run(**json.loads(path.read_text())) for path in _files(of, folder)]


def digest(of: str, folder: Path = KEPT) -> str:
    """Stands for all that `folder` holds of a benchmark; a plot names that of what it shows."""
    content = b"".join(path.read_bytes() for path in _files(of, folder))
    return blake2b(content, digest_size=16).hexdigest()


def _files(of: str, folder: Path) -> list[Path]:
    # A benchmark's name may be the beginning of another's; times begin with a digit.
    return sorted(folder.glob(f"{of}-[0-9]*.json"))
