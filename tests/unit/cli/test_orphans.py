"""A process whose parent is gone."""

import signal
import subprocess
import sys

from tests.support.machine import patience

HANGS = """
import asyncio, threading, types
from processor.cli.common import runner

told = threading.Event()

def sleep(seconds):
    assert seconds == runner.ORPHAN_MAX_S
    told.wait()

runner.time = types.SimpleNamespace(sleep=sleep)

async def serve():
    stop = asyncio.Event()
    runner.stop_with_parent(stop)
    print("started", flush=True)
    await stop.wait()
    print("told to stop", flush=True)
    told.set()
    await asyncio.Event().wait()

asyncio.run(serve())
"""


def test_an_orphan_that_does_not_end_is_killed() -> None:
    """Its parent would have done it. The time that it has passes once it was told to stop."""
    with subprocess.Popen(
        [sys.executable, "-c", HANGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as orphan:
        assert orphan.stdin is not None
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == "started\n"
        orphan.stdin.close()
        assert orphan.stdout.readline() == "told to stop\n"
        assert orphan.wait(timeout=patience(10)) == -signal.SIGKILL
