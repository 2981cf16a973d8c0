"""A state directory has one worker."""

import subprocess
import sys
from pathlib import Path

import pytest

from processor.adapters.sqlite import StateDirInUse, state_dir_lock

HOLD = """
import sys
from pathlib import Path
from processor.adapters.sqlite import state_dir_lock
with state_dir_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_worker_is_told_who_holds_the_directory_until_that_one_is_killed(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for _ in range(2):
            with pytest.raises(StateDirInUse) as refusal, state_dir_lock(tmp_path):
                pass
            assert str(tmp_path) in str(refusal.value)
            assert f"process id {other.pid}" in str(refusal.value)
            assert not refusal.value.retriable
        other.kill()
        other.wait()
        with state_dir_lock(tmp_path):
            pass


def test_a_directory_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            state_dir_lock(tmp_path / "new"),
            pytest.raises(StateDirInUse),
            state_dir_lock(tmp_path / "new"),
        ):
            pass
