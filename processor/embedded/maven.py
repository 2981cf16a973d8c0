"""Resolve Apache Kafka's jars by their Maven coordinates, through jgo.

jgo's `PythonResolver` reads POMs itself: neither Maven nor a system Java takes part.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from processor.embedded.environment import extra_missing
from processor.embedded.errors import JarUnavailable

if TYPE_CHECKING:
    from jgo.maven import MavenContext

KAFKA_VERSION = "4.3.1"

WANTED = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka logs through slf4j 1.7 and ships log4j itself; only the bridge is missing.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
)

OnBytes = Callable[[int], None]
TIMEOUT_S = 30


def fetch(coordinate: str, scratch: Path, on_bytes: OnBytes) -> Path:
    """Fetch one jar into `scratch` and return its path; `on_bytes` hears of each piece.

    What comes is unchecked. Raises JarUnavailable; whatever `on_bytes` raises ends the fetch.
    """
    group, artifact, version = coordinate.split(":")
    context = _context(scratch, on_bytes)
    component = context.project(group, artifact).at_version(version)
    try:
        path = context.resolver.download(component.artifact())
    except (OSError, RuntimeError) as error:  # requests' exceptions are OSErrors
        raise JarUnavailable(
            f"{coordinate} could not be fetched ({error}); "
            "the embedded broker cannot start without it."
        ) from error
    if path is None:
        raise JarUnavailable(f"{coordinate} is in none of the repositories.")
    return path


def resolve(scratch: Path) -> dict[str, Path]:
    """Everything that WANTED needs at run time: coordinate → jar in `scratch`, by coordinate."""
    context = _context(scratch, lambda _size: None)
    from jgo.maven import Dependency

    # raw: jgo otherwise takes each wanted component for a bill of materials too, and log4j's
    # parent POM, which manages versions of its own tests, then brings a kafka-clients 3.9.
    wanted = [
        Dependency(context.project(group, artifact).at_version(version).artifact(), raw=True)
        for group, artifact, version in (coordinate.split(":") for coordinate in WANTED)
    ]
    inputs, needed = context.resolver.resolve(wanted)
    jars = {
        f"{d.groupId}:{d.artifactId}:{d.version}": d.artifact.resolve() for d in inputs + needed
    }
    return dict(sorted(jars.items()))


def _context(scratch: Path, on_bytes: OnBytes) -> "MavenContext":
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise extra_missing() from error

    @contextlib.contextmanager
    def on_file(_filename: str, _size_bytes: int) -> Iterator[OnBytes]:
        yield on_bytes

    return MavenContext(
        resolver=PythonResolver(progress_callback=on_file),
        repo_cache=scratch,
        # A mirror that was set up for jgo is asked first; the checksums hold for it too.
        remote_repos={**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL},
        timeout=TIMEOUT_S,
    )
