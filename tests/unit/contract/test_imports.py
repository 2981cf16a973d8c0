"""Producers and consumers import `schemas` without the processor's dependencies."""

import subprocess
import sys

import pytest

OURS_AND_THEIRS = ("processor", "orjson", "aiokafka", "aiosqlite", "aiohttp", "yaml", "jsonschema")


@pytest.mark.parametrize("module", ["schemas", "processor.contract.publication.generate"])
def test_importing_the_schemas_needs_pydantic_only(module):
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "pydantic" in loaded
    assert not loaded.intersection(OURS_AND_THEIRS)
