"""The incident that processor/docs/runbook.md tells, command by command, against a real broker."""

import asyncio
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaProducer

from processor.client import FlowClient
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.cli_runner import Shell, child_worker

README = Path(__file__).parents[2] / "processor" / "docs" / "runbook.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY = "…"
FLOWS = [f"6f1f3a52-0000-4000-8000-{n:012}" for n in range(21)]


class Command(NamedTuple):
    """What is typed, the lines that are shown for it, and its exit code."""

    typed: str
    shown: list[str]
    code: int


def transcript(text: str) -> list[Command]:
    """The console blocks behind the mark."""
    _, mark, behind = text.partition("<!-- transcript -->")
    assert mark, "there is no transcript"
    commands: list[Command] = []
    for block in BLOCK.findall(behind):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append(Command(line[2:], [], 0))
            elif (code := re.fullmatch(r"\[exit code (\d)\]", line)) is not None:
                commands[-1] = commands[-1]._replace(code=int(code[1]))
            else:
                commands[-1].shown.append(line)
    return commands


def fits(shown: list[str], lines: list[str]) -> bool:
    """Whether `lines` are what is shown: `…` is anything within a line, and alone any lines."""
    pattern = "".join(
        r"(?:.*\n)*" if line == ANY else ".*".join(map(re.escape, line.split(ANY))) + r"\n"
        for line in shown
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def test_lines_are_held_against_what_is_shown() -> None:
    assert fits(['{"a":"…"}'], ['{"a":"b"}'])
    assert not fits(['{"a":"…"}'], ['{"b":"b"}'])
    assert not fits(['{"a":1}'], ['{"a":1}', '{"a":1}'])
    assert fits([ANY, "x", ANY], ["1", "2", "x"])
    assert not fits([ANY, "x", ANY], ["1", "2"])


def test_an_incident_from_alarm_to_repair(
    broker: EmbeddedBroker,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=1,
        state_dir=tmp_path / "state",
        http=None,
    )
    taskflow = Shell(settings, monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    with child_worker(settings):
        asyncio.run(a_release_goes_wrong(settings))
        change = {"kind": "start_running", "flow_id": FLOWS[3], "issued_by": "session-41"}
        Path("changed.jsonl").write_text(json.dumps(change) + "\n")
        commands = transcript(README.read_text("utf-8"))
        assert len(commands) > 8
        for command in commands:
            program, *arguments = shlex.split(command.typed)
            if program == "taskflow":
                lines = taskflow.lines(*arguments, code=command.code)
                assert fits(command.shown, lines), (command, lines, taskflow.errors)
            else:
                subprocess.run(command.typed, shell=True, check=True, executable="/bin/bash")


async def a_release_goes_wrong(settings: Settings) -> None:
    """A producer whose texts are Latin-1, and who begins flows that nobody goes on with."""

    def create(flow_id: str, **fields: Any) -> dict[str, Any]:
        about = {"controller_id": "shop", "requester_origin": "web", **fields}
        return {"kind": "create_managed", "goal": "für Jürgen", "flow_id": flow_id, **about}

    broken = create(FLOWS[0], issued_by="session-41", command_id=FLOWS[20])
    value = json.dumps(broken, ensure_ascii=False).encode("latin-1")
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        topic = f"{settings.topic_prefix}.commands"
        await producer.send_and_wait(topic, value, key=FLOWS[0].encode())
    async with FlowClient(settings) as client:
        for flow_id in FLOWS[1:]:
            state = {"release": 41}
            await client.send(create(flow_id, issued_by="session-41", state_json=state))
