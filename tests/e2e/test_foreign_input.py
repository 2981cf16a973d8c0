"""Records that no client of ours writes, on a real broker: a worker and a view worker go on, and
every command of the program ends with a sentence, whatever it reads."""

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.producer.record_writer import write_record
from processor.cli.main import main
from processor.embedded.broker import EmbeddedBroker
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from processor.telemetry.terminal import OBEYED
from tests.support.cli_runner import Shell, child_worker
from tests.support.foreign_records import Foreign, ForeignSender
from tests.support.machine import patience
from tests.support.terminal import on_a_terminal, without_styles
from tests.support.topics import set_compression
from tests.support.views import PARTITIONS, views

NINES = b"9" * 5_000
HOSTILE = "\x1b]0;title\x07\x9b31m\u202e\u2066\u061c"
RANDOM = 150
"""Records drawn at random, beside those that were met."""


def a_flow(number: int) -> str:
    """The id of a new flow of a partition."""
    while True:
        flow_id = str(uuid4())
        if partition_of(flow_id.encode(), PARTITIONS) == number:
            return flow_id


def create(flow_id: str) -> bytes:
    command = {"kind": "create_managed", "command_id": str(uuid4()), "flow_id": flow_id}
    about = {"controller_id": HOSTILE, "goal": HOSTILE, "requester_origin": HOSTILE}
    return json.dumps(command | {"issued_by": HOSTILE} | about, ensure_ascii=False).encode()


def records(prefix: str, flow_id: str) -> list[Foreign]:
    """`flow_id`, of partition 0, is a flow whose fields a terminal would obey."""
    key, dead_letter = flow_id.encode(), f"{prefix}.deadletters/0/"
    forwarded, redriven = "taskflow-forwarded-from", "taskflow-redriven-from"
    met: list[tuple[int, bytes | None, bytes | None, str, bytes | None]] = [
        (0, b"k", b"{bad", "taskflow-truncated", NINES),
        (0, b"k", b"{bad", "taskflow-truncated", b"9" * 20),
        (0, b"k", b"{bad", "taskflow-source-offset", "١٢".encode()),
        (0, b"k", b"{bad", redriven, dead_letter.encode() + NINES),
        (0, b"k", b"{bad", redriven, dead_letter.encode() + b"0"),
        (0, b"k", b"{bad", HOSTILE, HOSTILE.encode()),
        (0, key, create(flow_id), forwarded, None),
        (1, key, create(flow_id), forwarded, None),
        (1, key, create(flow_id), forwarded, f"{prefix}.commands/0/{'9' * 5_000}".encode()),
        (0, None, None, "mine", None),
        (1, b"k" * 100_000, bytes(2_000_000), "mine", b"x" * 100_000),
        (0, HOSTILE.encode(), json.dumps({"kind": HOSTILE, HOSTILE: 1}).encode(), "mine", b""),
    ]
    found = [
        Foreign("commands", number, at, value, ((name, held),))
        for number, at, value, name, held in met
    ]
    return found + [ForeignSender(seed).foreign() for seed in range(RANDOM)]


def put(settings: Settings, some: list[Foreign]) -> None:
    async def write() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap_servers,
            compression_type="gzip",
            max_request_size=8_000_000,
        ) as producer:
            for one in some:
                topic = f"{settings.topic_prefix}.{one.name}"
                await (
                    await write_record(
                        producer, topic, one.key, one.value, one.headers, partition=one.partition
                    )
                )

    asyncio.run(write())


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"partitions": PARTITIONS})


def until_decided(taskflow: Shell) -> None:
    deadline = time.monotonic() + patience(60)
    while any("offsets undecided" in line["what"] for line in taskflow("doctor", code=None)):
        assert time.monotonic() < deadline


def test_every_command_reads_what_any_sender_writes(
    settings: Settings,
    taskflow: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow_id = a_flow(0)
    some = records(settings.topic_prefix, flow_id)
    asyncio.run(create_topics(settings))
    asyncio.run(set_compression(settings, "producer"))  # or the broker keeps the largest out
    put(settings, some)
    history, export = str(tmp_path / "history.gz"), str(tmp_path / "flows.sqlite")
    with child_worker(settings):
        until_decided(taskflow)
        dead_letters = taskflow("deadletters", "list", "--redriven")
        assert len(dead_letters) >= len([one for one in some if one.value == b"{bad"])
        places = [dead_letter["letter"] for dead_letter in dead_letters]
        for place in places[:40]:
            (shown,) = taskflow("deadletters", "show", place)
            assert shown["letter"] == place
        # A sender's own header stands for no redrive of ours where it is not the last.
        taskflow("deadletters", "redrive", "--all", "--dry-run", code=None)
        taskflow("deadletters", "redrive", "--all", "--unreadable", "--yes", code=None)
        assert "Traceback" not in taskflow.errors
        until_decided(taskflow)

        commands = [
            *(("audit",), ("outcomes",), ("deadletters",), ("doctor",), ("topics", "check")),
            *(("deadletters", "list"), ("deadletters", "list", "--json")),
            *(("deadletters", "show", place) for place in places[:12]),
            *(("deadletters", "show", place, "--json") for place in places[:12]),
            *(("flow", "list"), ("flow", "list", "--json"), ("flow", "list", "--owner", HOSTILE)),
            *(("flow", "show", flow_id), ("flow", "show", flow_id, "--json")),
            *(("flow", "history", flow_id), ("flow", "history", flow_id, "--json")),
            *(("flow", "blame", flow_id), ("flow", "diff", flow_id, "0", "0")),
            *(("prune", "--older-than", "1s", "--dry-run"), ("replay", "check")),
            *(("bulk", "cancel", "--owner", HOSTILE, "--dry-run"), ("verify",)),
            *(("replay", "export", history), ("replay", "check", history)),
            *(("export", export), ("rebuild", "--check")),
        ]
        for command in commands:
            printed = on_a_terminal(monkeypatch, partial(main, command))
            assert "Traceback" not in printed, (command, printed)
            text = without_styles(printed)
            assert not OBEYED.search(text), (command, ascii(text)[:2_000])
        assert taskflow("verify")[0]["ok"], taskflow("verify")[0]["violations"]
        assert taskflow("replay", "check")[0]["ok"]
    (report,) = taskflow("verify", "--at-rest")
    assert report["ok"], report

    new = settings.model_copy(update={"topic_prefix": f"{settings.topic_prefix}n", "partitions": 3})
    taskflow("repartition", "--to", "3", "--prefix", new.topic_prefix, "--yes")
    there = Shell(new, monkeypatch, taskflow.capsys)
    assert there("verify")[0]["ok"]
    assert there("topics", "check") == []


async def test_a_view_worker_stays_ready_and_shows_each_dead_letter(
    broker: EmbeddedBroker,
    prefix: str,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        state_dir=tmp_path / "state",
        http=None,
    )
    await create_topics(settings)
    some = records(prefix, a_flow(0))
    await asyncio.to_thread(put, settings, [one for one in some if len(one.value or b"") < 10**6])
    with child_worker(settings):
        async with views(1, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (view,):
            await view.start()
            # The ones that are met are among the first of partition 0.
            page = await view.until(
                lambda response: any("{bad" in item["value"] for item in response["items"]),
                "/v1/deadletters",
                limit="100",
            )
            assert page["view"]["complete"]
            await view.until(lambda response: response["ready"], "/ready")
            assert "Traceback" not in view.output()
            assert await view.end() == 0
