"""What the documentation shows runs: each python block under `<!-- runs: name -->`."""

import sys
from pathlib import Path

import pytest

from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.examples import examples, shown
from tests.support.forked_program import inherited
from tests.support.newcomer import ROLES, Program
from tests.support.worker import running_worker

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "processor" / "docs").glob("*.md"))]


def test_only_marked_blocks_are_taken() -> None:
    text = (
        "```python\nno()\n```\n"
        "<!-- runs: one -->\n```python\nyes()\n```\n"
        "<!-- runs: two -->\n\n```python\na = 1\n\nb = 2\n```\n"
    )
    assert examples(text) == {"one": "yes()\n", "two": "a = 1\n\nb = 2\n"}


def test_a_mark_without_a_block_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="right before"):
        examples("<!-- runs: one -->\ntext\n```python\nyes()\n```\n")


async def test_what_is_shown_runs(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> None:
    """Those of the first ten minutes run in the test of that page."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        state_dir=tmp_path / "state",
        http=None,
    )
    environ = {
        **inherited(),
        "TASKFLOW_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TASKFLOW_TOPIC_PREFIX": settings.topic_prefix,
        "PYTHONPATH": str(ROOT),
    }
    blocks = {name: code for page in PAGES for name, code in examples(page.read_text()).items()}
    recorded = {step.name for role in ROLES for step in role.steps if isinstance(step, Program)}
    assert recorded < blocks.keys()
    async with running_worker(settings):
        for name, code in blocks.items():
            if name in recorded:
                continue
            command = (sys.executable, "-W", "error", "-c", code)
            assert await shown(command, cwd=tmp_path, environ=environ), f"{name} shows nothing"
