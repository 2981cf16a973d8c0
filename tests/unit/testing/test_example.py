"""The example of processor/docs/testing.md passes as it stands there, in under a second, and starts
no JVM."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.examples import examples

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "processor" / "docs" / "testing.md"
CPU_MAX_S = 1.0
"""Of all five tests, without the imports of the first."""
NO_PROGRAMS = """
import subprocess
import time
import pytest

spent_s = 0.0

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    global spent_s
    began_s = time.process_time()
    yield
    spent_s += time.process_time() - began_s

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"CPU {spent_s:.3f} s")

def refuse(*_, **__):
    raise AssertionError("a process was started")

subprocess.Popen.__init__ = refuse
"""


def test_its_five_tests_pass(tmp_path: Path) -> None:
    files = examples(PAGE.read_text("utf-8"), mark="file")
    assert set(files) == {"orders.py", "test_orders.py"}
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "conftest.py").write_text(NO_PROGRAMS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "processor.testing.plugin",
    ]
    for option in ("asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function"):
        command += ["-o", option]
    environ = {name: value for name, value in os.environ.items() if "TASKFLOW" not in name}
    environ["PYTHONPATH"] = str(ROOT)

    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    spent = re.search(r"CPU ([0-9.]+) s", done.stdout)
    assert spent is not None
    assert float(spent[1]) < CPU_MAX_S
