"""`python -m processor.embedded`: fetch Apache Kafka's jars, or lock what may run.

`fetch` needs filelock, jgo and tenacity only, so that it can run while the rest is installed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from processor.embedded import maven
from processor.embedded.environment import cache_dir
from processor.embedded.jars import LOCK, Jar, ensure_jars, lock_text, sha256_of
from processor.embedded.progress import to_stderr
from processor.errors import TaskflowError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m processor.embedded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="fetch the jars into the cache, as a first start would")
    commands.add_parser("lock", help="resolve Kafka again; write jars.lock, bootstrap.checkpoint")
    if parser.parse_args().command == "fetch":
        return fetch()
    return lock()


def fetch() -> int:
    """Fetch what is missing; 1 if that failed, with the reason on standard error."""
    try:
        ensure_jars(cache_dir(), to_stderr)
    except TaskflowError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def lock() -> int:
    """Resolve Apache Kafka's jars again; lock their checksums and a new cluster's features."""
    from processor.embedded.directory import FEATURES, features_checkpoint
    from processor.embedded.environment import java

    # An empty directory: what is locked is what the repository serves now, not what lies here.
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as formatted:
        paths = maven.resolve(Path(scratch))
        jars = [
            Jar(coordinate, path.stat().st_size, sha256_of(path))
            for coordinate, path in paths.items()
        ]
        command = [str(java()), "-cp", ":".join(map(str, paths.values()))]
        features = features_checkpoint(command, Path(formatted))
    LOCK.write_text(lock_text(jars), encoding="utf-8")
    FEATURES.write_bytes(features)
    size_mb = sum(jar.size_bytes for jar in jars) / 1e6
    sys.stdout.write(f"{LOCK.name}: {len(jars)} jars, {size_mb:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
