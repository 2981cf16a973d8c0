"""`taskflow send` publishes lines as they are."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from processor.cli.send.pipeline import send_lines
from processor.testing.fake import TaskflowFake
from tests.support.builders import document


async def test_a_line_that_is_sent_again_is_a_duplicate(
    taskflow_fake: TaskflowFake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"controller_id": "c", "goal": "g", "requester_origin": "o"}
    lines = tmp_path / "commands.jsonl"
    lines.write_text(json.dumps(document("create_managed", **about)))

    for _ in range(2):
        failed = await send_lines(
            taskflow_fake.settings, lines, wait=True, control=False, timeout_s=10
        )
        assert not failed
        await taskflow_fake.advance(timedelta(minutes=1))

    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert [outcome["verdict"] for outcome in printed] == ["accepted", "duplicate"]
