"""The jars of the embedded broker: fetched once, whole, and only as they were locked."""

import hashlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from processor.embedded.errors import JarMismatch, JarUnavailable
from processor.embedded.jars import Jar, ensure_jars, lock_text, locked_jars
from processor.embedded.maven import KAFKA_VERSION, WANTED, OnBytes
from tests.support.machine import patience


def content(coordinate: str) -> bytes:
    return coordinate.encode() * 1000


def locked(*names: str) -> list[Jar]:
    coordinates = [f"org.example:{name}:1.0" for name in names]
    return [Jar(c, len(content(c)), hashlib.sha256(content(c)).hexdigest()) for c in coordinates]


class Repository:
    """Serves what was locked, counts what it served, and can be told to fail."""

    def __init__(self, *, failures: int = 0, forged: bool = False) -> None:
        self.served: Counter[str] = Counter()
        self.failures = failures
        self.forged = forged

    def fetch(self, coordinate: str, scratch: Path, on_bytes: OnBytes) -> Path:
        if self.failures:
            self.failures -= 1
            raise JarUnavailable("the repository is away")
        self.served[coordinate] += 1
        body = b"something else" if self.forged else content(coordinate)
        path = scratch / "deep" / "inside.jar"
        path.parent.mkdir(parents=True)
        for start in range(0, len(body), 1000):
            with path.open("ab") as file:
                file.write(body[start : start + 1000])
            on_bytes(1000)
        return path


def silent(_line: str) -> None:
    """A Progress that nobody reads."""


def test_missing_jars_are_fetched_once_and_then_only_checked(tmp_path: Path) -> None:
    repository, jars = Repository(), locked("a", "b")

    first = ensure_jars(tmp_path, silent, jars=jars, fetch=repository.fetch)
    second = ensure_jars(tmp_path, silent, jars=jars, fetch=repository.fetch)

    assert first == second
    assert [path.read_bytes() for path in first] == [content(jar.coordinate) for jar in jars]
    assert set(repository.served.values()) == {1}


def test_a_planted_jar_is_refused_in_one_sentence(tmp_path: Path) -> None:
    repository, jars = Repository(), locked("a", "b")
    planted, _ = ensure_jars(tmp_path, silent, jars=jars, fetch=repository.fetch)
    planted.write_bytes(b"evil")

    with pytest.raises(JarMismatch, match=r"a-1\.0\.jar is not the jar that was locked") as refusal:
        ensure_jars(tmp_path, silent, jars=jars, fetch=repository.fetch)

    assert "\n" not in str(refusal.value)
    assert str(planted) in str(refusal.value)


def test_a_forged_jar_never_enters_the_cache(tmp_path: Path) -> None:
    with pytest.raises(JarMismatch, match="It was removed"):
        ensure_jars(tmp_path, silent, jars=locked("a"), fetch=Repository(forged=True).fetch)

    assert not list(tmp_path.rglob("*.jar"))


def test_a_hiccup_of_the_repository_is_tried_again(tmp_path: Path) -> None:
    repository = Repository(failures=1)

    ensure_jars(tmp_path, silent, jars=locked("a"), fetch=repository.fetch)

    assert repository.served.total() == 1


def test_a_fetch_that_was_given_up_keeps_the_jars_that_came(tmp_path: Path) -> None:
    repository, jars = Repository(), locked("a", "b")

    def give_up_at_b(coordinate: str, scratch: Path, on_bytes: OnBytes) -> Path:
        if coordinate == jars[1].coordinate:
            raise KeyboardInterrupt
        return repository.fetch(coordinate, scratch, on_bytes)

    with pytest.raises(KeyboardInterrupt):
        ensure_jars(tmp_path, silent, jars=jars, fetch=give_up_at_b)
    ensure_jars(tmp_path, silent, jars=jars, fetch=repository.fetch)

    assert repository.served == {jar.coordinate: 1 for jar in jars}


def test_first_runs_at_the_same_time_fetch_each_jar_once(tmp_path: Path) -> None:
    repository, jars = Repository(), locked("a", "b", "c")
    together = threading.Barrier(4)

    def first_run() -> list[Path]:
        together.wait()
        return ensure_jars(tmp_path, silent, jars=jars, fetch=repository.fetch)

    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(first_run) for _ in range(4)]

    assert all(run.result() == runs[0].result() for run in runs)
    assert repository.served == {jar.coordinate: 1 for jar in jars}


def test_the_first_run_tells_what_is_fetched_and_how_far_it_is(tmp_path: Path) -> None:
    lines: list[str] = []

    ensure_jars(tmp_path, lines.append, jars=locked("a", "b"), fetch=Repository().fetch)

    assert "0 of 2 jars" in lines[0]
    assert "2 of 2 jars" in lines[-1]
    assert lines[-1].endswith("done")


def test_jars_are_fetched_at_the_same_time(tmp_path: Path) -> None:
    repository, both = Repository(), threading.Barrier(2, timeout=patience(5))

    def meet(coordinate: str, scratch: Path, on_bytes: OnBytes) -> Path:
        both.wait()
        return repository.fetch(coordinate, scratch, on_bytes)

    ensure_jars(tmp_path, silent, jars=locked("a", "b"), fetch=meet)

    assert repository.served.total() == 2


def test_what_a_listener_raises_ends_all_fetches_at_their_next_bytes(tmp_path: Path) -> None:
    class GivenUp(Exception):
        pass

    def give_up(_line: str) -> None:
        raise GivenUp

    repository = Repository()
    with pytest.raises(GivenUp):
        ensure_jars(tmp_path, give_up, jars=locked("a", "b", "c"), fetch=repository.fetch)

    assert not list(tmp_path.rglob("*.jar"))


def test_the_lock_names_kafka_itself_and_reads_back_as_it_was_written() -> None:
    jars = locked_jars()

    assert set(WANTED) <= {jar.coordinate for jar in jars}
    assert f"Apache Kafka {KAFKA_VERSION}" in lock_text(jars).splitlines()[0]
    # jgo once brought the kafka-clients of log4j's own tests.
    assert f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}" in {jar.coordinate for jar in jars}
