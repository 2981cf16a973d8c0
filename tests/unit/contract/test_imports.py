"""Producers and consumers import the models without the processor's dependencies."""

import subprocess
import sys

import pytest

NOT_NEEDED = ("orjson", "aiokafka", "aiosqlite", "aiohttp", "yaml", "jsonschema")


@pytest.mark.parametrize(
    "module", ["processor.contract.commands", "processor.contract.publication.generate"]
)
def test_importing_the_models_needs_pydantic_only(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    loaded = {name.partition(".")[0] for name in names}
    assert "pydantic" in loaded
    ours = {name.split(".")[1] for name in names if name.startswith("processor.")}
    assert ours == {"contract"}
    assert not loaded.intersection(NOT_NEEDED)
