"""Kafka's jars on disk: fetched once per user, checked against the lock before every run."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from processor.embedded import maven
from processor.embedded.environment import usable
from processor.embedded.errors import JarMismatch, JarUnavailable
from processor.embedded.progress import Meter, Progress

Fetch = Callable[[str, Path, maven.OnBytes], Path]
"""(coordinate, empty directory, on_bytes) -> the jar in that directory, unchecked."""

LOCK = Path(__file__).with_name("jars.lock")
TRIES = 3
FETCHES_AT_ONCE = 6


@dataclass(frozen=True, slots=True)
class Jar:
    """A jar as it was locked."""

    coordinate: str
    size_bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def locked_jars() -> list[Jar]:
    lines = (line.split() for line in LOCK.read_text("utf-8").splitlines() if line[:1] != "#")
    return [Jar(coordinate, int(size), sha256) for sha256, size, coordinate in lines]


def lock_text(jars: Iterable[Jar]) -> str:
    """The lock file's content; `locked_jars` reads it back."""
    head = (
        f"# Apache Kafka {maven.KAFKA_VERSION} and what it needs to run: "
        "SHA-256, size in bytes, coordinate.\n"
        "# Written by `python -m processor.embedded lock`; no jar runs that differs from it.\n"
    )
    return head + "".join(f"{jar.sha256} {jar.size_bytes} {jar.coordinate}\n" for jar in jars)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ensure_jars(
    cache_dir: Path,
    progress: Progress,
    *,
    jars: Sequence[Jar] | None = None,
    fetch: Fetch = maven.fetch,
) -> list[Path]:
    """Paths of all locked jars, fetched where missing, every one checked.

    Blocks; several processes may call it at once, and one of them fetches. Raises JarMismatch,
    JarUnavailable, DirectoryUnusable, ExtraMissing.
    """
    jars = locked_jars() if jars is None else jars
    home = cache_dir / f"kafka-{maven.KAFKA_VERSION}"
    with usable(cache_dir, "TASKFLOW_CACHE_DIR"):
        home.mkdir(parents=True, exist_ok=True)
        if any(not (home / jar.filename).exists() for jar in jars):
            _fetch_missing(home, jars, progress, fetch)
    paths = [home / jar.filename for jar in jars]
    for jar, path in zip(jars, paths, strict=True):
        _check(jar, path, f"Delete {path} to have it fetched again.")
    return paths


def _fetch_missing(home: Path, jars: Sequence[Jar], progress: Progress, fetch: Fetch) -> None:
    with _held(home / ".lock", progress):
        for abandoned in home.glob(".fetching-*"):  # of a run that was killed
            shutil.rmtree(abandoned, ignore_errors=True)
        missing = [jar for jar in jars if not (home / jar.filename).exists()]
        # The largest first: none of them is then fetched alone at the end.
        missing.sort(key=lambda jar: jar.size_bytes, reverse=True)
        meter = Meter({jar.filename: jar.size_bytes for jar in missing}, progress)
        with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
            fetches = [pool.submit(_fetch_one, home, jar, meter, fetch) for jar in missing]
            try:
                for one in as_completed(fetches):
                    one.result()
            finally:
                # After an error those that were begun are complete before it is raised.
                pool.shutdown(cancel_futures=True)


def _fetch_one(home: Path, jar: Jar, meter: Meter, fetch: Fetch) -> None:
    # Beside its place, so that the rename is atomic: a jar is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetching-") as scratch:
        came = _patiently(fetch, jar, Path(scratch), meter)
        _check(jar, came, "It was removed; a mirror or proxy may have changed it.")
        came.replace(home / jar.filename)
    meter.end(jar.filename)


@contextmanager
def _held(path: Path, progress: Progress) -> Iterator[None]:
    """The file lock at `path`. What `progress` raises ends the waiting for it."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            progress("another process is fetching Apache Kafka; waiting for it")
        else:
            break
    try:
        yield
    finally:
        lock.release()


def _patiently(fetch: Fetch, jar: Jar, scratch: Path, meter: Meter) -> Path:
    """`fetch`, tried again: one hiccup of a network should not end a first run."""
    for attempt in Retrying(
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential(max=4),
        retry=retry_if_exception_type(JarUnavailable),
        reraise=True,
    ):
        with attempt:
            meter.begin(jar.filename)
            nth = attempt.retry_state.attempt_number
            return fetch(jar.coordinate, scratch / str(nth), partial(meter.add, jar.filename))
    raise AssertionError("Retrying with reraise ends by a return or an exception")


def _check(jar: Jar, path: Path, remedy: str) -> None:
    if sha256_of(path) != jar.sha256:
        raise JarMismatch(
            f"{jar.filename} is not the jar that was locked (its SHA-256 differs), "
            f"so the embedded broker does not run it. {remedy}"
        )
