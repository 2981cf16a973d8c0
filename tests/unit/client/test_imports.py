"""Importing the client changes nothing in a process."""

import subprocess
import sys

PROGRAM = """
from aiokafka.consumer import fetcher
before = fetcher.MemoryRecords
import processor.client
assert fetcher.MemoryRecords is before
"""


def test_importing_the_client_replaces_no_class_of_aiokafka() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
