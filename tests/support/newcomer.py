"""A newcomer's first ten minutes in each of five roles: what is typed, and what a terminal of 80
columns shows.

    python -m tests.support.newcomer     # records processor/docs/first-ten-minutes.md again

The commands run in this process, beside a real worker and Kafka.
"""

import asyncio
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import pytest
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.reader.topic_reader import read
from processor.cli.main import main
from processor.cli.up.execute import greeting
from processor.client import flow_id_for
from processor.contract.topics import Topics
from processor.embedded.broker import embedded_broker
from processor.settings import VARIABLES, Settings
from tests.support.cli_runner import child_worker
from tests.support.examples import examples
from tests.support.machine import patience
from tests.support.own_loop import on_a_loop_of_its_own

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "processor" / "docs" / "first-ten-minutes.md"
PREFIX: Final = "newcomer"
WIDTH: Final = 80
ORDER: Final = flow_id_for("order-17")[:8]
PARCEL: Final = flow_id_for("parcel-9")[:8]

HEAD: Final = """# The first ten minutes

What a newcomer types, and what a terminal of 80 columns shows, for each of five roles. A test
records this page again and compares it; `python -m tests.support.newcomer` writes it.

All of them begin with `taskflow up`, which says:

"""


class Typed(NamedTuple):
    """A command line, what it reads, and a sentence before it."""

    why: str
    line: str
    stdin: str = ""


class Program(NamedTuple):
    """An example of the documentation: where it stands, and its name there."""

    why: str
    page: str
    name: str


class Role(NamedTuple):
    """One who comes new, and what this one does."""

    title: str
    steps: Sequence[Typed | Program]


WRONG: Final = '{"kind":"create","flow_id":"order-18","issued_by":"me"}'
MINE: Final = f'"flow_id":"{flow_id_for("parcel-9")}","issued_by":"shop"'
EVENT: Final = '{"kind":"external_event","topic":"carrier","correlation_id":"9"}'
COMMANDS: Final = f"""{{"kind":"start_running",{MINE}}}
{{"kind":"set_waiting",{MINE},"wait":{EVENT}}}
"""

RUN_ID: Final = "ring"
OFFERED: Final = Typed("The work that is offered:", "taskflow steps --limit 1")

REPORTS: Final = ("$ taskflow doctor", "$ taskflow verify")
"""Commands that print a report in sentences."""

ROLES: Final = (
    Role(
        "Producer",
        (
            Typed(
                "A flow by hand, with a key of one's own:",
                "taskflow flow create 'Deliver parcel 9' --key parcel-9 --owner shop --origin web",
            ),
            Typed("Commands as JSON lines:", "taskflow send --wait", COMMANDS),
            Typed("One that is none is refused before it is sent:", "taskflow send --wait", WRONG),
            Program("The program of [producing](producing.md):", "producing.md", "life"),
            Typed("The outcomes:", "taskflow outcomes --limit 6"),
        ),
    ),
    Role(
        "Consumer",
        (
            Program("The program of [consuming](consuming.md):", "consuming.md", "audit"),
            Typed("The same from a shell, the newest of it:", "taskflow audit --limit 5"),
            Typed("One flow, until it has ended:", f"taskflow flow watch {ORDER}"),
            Typed("As a pipe gets it:", "taskflow audit --kind finished --json"),
        ),
    ),
    Role(
        "Operator",
        (
            Typed("What is there:", "taskflow flow list"),
            Typed("What waits, for what and for how long:", "taskflow flow list --waiting"),
            Typed("By a field of the state:", "taskflow flow list --where 'state.paid = true'"),
            Typed("Why a flow is as it is:", f"taskflow flow history {PARCEL}"),
            Typed("Who changed a place of it last:", f"taskflow flow blame {ORDER} state.paid"),
            Typed(
                "An order for many, first as a preview:",
                "taskflow bulk cancel --owner shop --dry-run",
            ),
            Typed("One flow:", f"taskflow flow resume {PARCEL}"),
            Typed("What was no command:", "taskflow deadletters list"),
            Typed("Whether all is well:", "taskflow doctor"),
        ),
    ),
    Role(
        "Evaluator",
        (
            Typed("Every promise, from the topics and tables:", "taskflow verify"),
            Typed("Does this version decide as it did?", "taskflow replay check"),
            Typed("Are the topics as they must be?", "taskflow topics check"),
            Typed("All of it in one SQLite file:", "taskflow export flows.db"),
        ),
    ),
    Role(
        "Author of a service",
        (
            Program("The program of the [README](../../README.md):", "../../README.md", "triage"),
            Typed("What the executor did:", "taskflow step list"),
            Typed("A step by hand:", "taskflow flow create 'Call back' --key call-3"),
            Typed("", f"taskflow step schedule {flow_id_for('call-3')[:8]} {RUN_ID} --task phone"),
            OFFERED,
        ),
    ),
)


class _Terminal(io.TextIOWrapper):
    """What commands take for a terminal; its errors are no place for progress bars."""

    def __init__(self, sink: io.BytesIO, *, is_terminal: bool) -> None:
        super().__init__(sink, "utf-8", write_through=True)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def close(self) -> None:
        """The other stream writes to the same place."""


def shown(patch: pytest.MonkeyPatch, show: Callable[[], object]) -> str:
    """What `show` writes, as it stands on a terminal."""
    sink = io.BytesIO()
    with patch.context() as patched:
        patched.setattr(sys, "stdout", _Terminal(sink, is_terminal=True))
        patched.setattr(sys, "stderr", _Terminal(sink, is_terminal=False))
        show()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sink.getvalue().decode())
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def record(patch: pytest.MonkeyPatch, bootstrap: str) -> str:
    """The page, of topics that are new to this Kafka."""
    with TemporaryDirectory() as home:
        patch.chdir(home)
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        settings = Settings(
            bootstrap_servers=bootstrap,
            topic_prefix=PREFIX,
            partitions=1,
            state_dir=Path("data"),
            http=None,
        )
        own = {
            "TASKFLOW_BOOTSTRAP_SERVERS": bootstrap,
            "TASKFLOW_TOPIC_PREFIX": PREFIX,
            "TASKFLOW_PARTITIONS": "1",
            "TASKFLOW_VIEWS_HTTP": "127.0.0.1:1",
            "TASKFLOW_HTTP": "off",
        }
        for name, value in {**own, "COLUMNS": str(WIDTH), "LOGNAME": "you"}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["taskflow"])
        with child_worker(settings):
            asyncio.run(_send_nonsense(settings))
            parts = [_section(patch, settings, role) for role in ROLES]
        up = greeting(Settings(), "127.0.0.1:9092", "http://127.0.0.1:8901", seen=True)
        said = "\n".join(up).replace(str(Path("data").absolute()), "/home/you/data")
    return f"{HEAD}```\n$ taskflow up\n{said}\n```\n" + "".join(parts)


async def _send_nonsense(settings: Settings) -> None:
    """What another client writes that has a bug: a dead letter."""
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        topic, key = f"{settings.topic_prefix}.commands", flow_id_for("parcel-9").encode()
        await producer.send_and_wait(topic, b'{"kind": "finish", oops', key=key)


async def _until_offered(settings: Settings, run_id: str) -> None:
    """A work item is written after the outcome of what offers its step."""
    async with asyncio.timeout(patience(30)):
        items = read(settings, Topics(settings.topic_prefix).steps, follow=True)
        async with aclosing(items):
            async for item in items:
                if json.loads(item.value)["run_id"] == run_id:
                    return


def _section(patch: pytest.MonkeyPatch, settings: Settings, role: Role) -> str:
    text = f"\n## {role.title}\n"
    for step in role.steps:
        if step is OFFERED:
            asyncio.run(_until_offered(settings, RUN_ID))
        if step.why:
            text += f"\n{step.why}\n"
        text += f"\n```\n{_played(patch, step)}```\n"
    return text


def _played(patch: pytest.MonkeyPatch, step: Typed | Program) -> str:
    if isinstance(step, Program):
        code = examples((PAGE.parent / step.page).read_text("utf-8"))[step.name]
        named = {"__name__": "__main__"}
        return f"$ python {step.name}.py\n" + shown(
            patch, lambda: exec(compile(code, f"{step.name}.py", "exec"), named)
        )
    words, before = shlex.split(step.line)[1:], ""
    if step.stdin:
        Path("commands.jsonl").write_text(step.stdin)
        words.append("commands.jsonl")
        before = f"$ cat commands.jsonl\n{step.stdin.rstrip()}\n"
    line = f"{step.line} commands.jsonl" if step.stdin else step.line
    return f"{before}$ {line}\n" + shown(patch, lambda: main(words))


def stable(page: str) -> list[str]:
    """The lines of a page without what is another each time: ids, times, spans, ports, and where
    cells are cut and sentences are broken."""
    page = re.sub(
        r"commands in .*?snapshots", lambda one: " ".join(one[0].split()), page, flags=re.S
    )
    for pattern, instead in (
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
        (r"\b[0-9a-f]{8,16}\b", "ID"),
        (r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z?)?", "DAY"),
        (r"\d\d:\d\d:\d\d(?:\.\d+)?", "TIME"),
        (r"(?:\d[\d.,]* (?:d|h|min|s|ms)\b ?)+|< 1 s", "SPAN "),
        (r"\b\d+[smhd]\b", "AGE"),
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"Python \d+\.\d+\.\d+", "PYTHON"),
        (r"\d[\d.,]*/s\b", "RATE"),
        (r"\d[\d,]*\.\d+|\d+,\d+(?: MiB)?", "FIGURE"),
        # Each transaction has an offset of its own, and commands may share one.
        (r"\{0: \d+\}", "{0: OFFSET}"),
        # Three steps may be done in any order.
        (r"\['created', 'started', 'step_.*\]", "KINDS"),
        (r"\bmail-\d\b(?! *')", "mail-N"),
        (r"triage:\S+", "EXECUTOR"),
        (r"\S*…", "…"),
        (r"[ \t]+", " "),
    ):
        page = re.sub(pattern, instead, page)
    found, report = [], False
    for line in map(str.strip, page.splitlines()):
        report = line in REPORTS or (report and line != "```")
        if report and line not in REPORTS:
            # Prose, which tests of these commands look at: here it is enough what was checked.
            found += re.findall(r"^(?:I\d+|good|warning|bad)\b", line)
        elif line != "DAY, UTC":  # a line of its own, and there may be two of them
            found.append(line)
    return found


def main_of_recorder() -> None:
    """Write the page, by a Kafka of its own."""
    with on_a_loop_of_its_own(embedded_broker()) as broker, pytest.MonkeyPatch.context() as patch:
        page = record(patch, broker.bootstrap)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main_of_recorder()
