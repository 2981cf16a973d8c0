"""`python -m processor.embedded lock`: resolve Apache Kafka again and write the checksum lock."""

import argparse
import sys
import tempfile
from pathlib import Path

from processor.embedded import maven
from processor.embedded.jars import LOCK, Jar, lock_text, sha256_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m processor.embedded", description=__doc__)
    parser.add_argument("command", choices=["lock"])
    parser.parse_args()
    # An empty directory: what is locked is what the repository serves now, not what lies here.
    with tempfile.TemporaryDirectory() as scratch:
        jars = [
            Jar(coordinate, path.stat().st_size, sha256_of(path))
            for coordinate, path in maven.resolve(Path(scratch)).items()
        ]
    LOCK.write_text(lock_text(jars), encoding="utf-8")
    size_mb = sum(jar.size_bytes for jar in jars) / 1e6
    sys.stdout.write(f"{LOCK.name}: {len(jars)} jars, {size_mb:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
