"""The program as people run it: processes, exit codes, standard output and standard error.

What serves is started as a user starts it; what ends by itself is forked, without its imports.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import psutil
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from processor.cli.demo.report import LINES_MAX
from processor.embedded.broker import EmbeddedBroker, free_port
from tests.support.forked_program import Result, inherited, shared_program
from tests.support.machine import patience

Environment = dict[str, str]


def environment(bootstrap: str, prefix: str, state_dir: Path) -> Environment:
    """Its addresses are nobody else's: tests run beside each other."""
    return {
        **inherited(),
        "TASKFLOW_BOOTSTRAP_SERVERS": bootstrap,
        "TASKFLOW_TOPIC_PREFIX": prefix,
        "TASKFLOW_STATE_DIR": str(state_dir),
        "TASKFLOW_PARTITIONS": "2",
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_VIEWS_HTTP": f"127.0.0.1:{free_port()}",
    }


@pytest.fixture
def env(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> Environment:
    return environment(broker.bootstrap, prefix, tmp_path / "state")


def taskflow(env: Environment, *arguments: str, stdin: str = "") -> Result:
    settings = {name: value for name, value in env.items() if name.startswith("TASKFLOW_")}
    done = shared_program().where(settings)(*arguments, stdin=stdin)
    assert "Traceback" not in done.err, done.err
    return done


def lines(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


@contextlib.contextmanager
def running(
    env: Environment, *arguments: str, process_group: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "processor", *arguments],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=process_group,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def create(flow_id: str, by: str = "me", **fields: object) -> dict[str, object]:
    return {
        "kind": "create_managed",
        "flow_id": flow_id,
        "issued_by": by,
        "controller_id": "tests",
        "goal": f"Be flow {flow_id}",
        "requester_origin": "pytest",
        **fields,
    }


def jsonl(*commands: dict[str, object]) -> str:
    return "".join(json.dumps(command) + "\n" for command in commands)


@pytest.fixture
async def worker(env: Environment, tmp_path: Path) -> AsyncIterator[None]:
    """A worker on topics of its own; it ends in good order."""
    assert taskflow(env, "topics", "create").code == 0
    log = tmp_path / "worker.log"
    process = shared_program().start(["worker"], env, log)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(patience(30)):
            assert await process.wait() == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)


def test_topics_are_made_and_checked(env: Environment, prefix: str) -> None:
    missing = taskflow(env, "topics", "check")
    assert missing.code == 1
    assert len(lines(missing)) == 7
    assert f"7 of 7 topics of '{prefix}' are not as they must be." in missing.err

    made = taskflow(env, "topics", "create")
    assert made.code == 0
    assert len(lines(made)) == 7
    again = taskflow(env, "topics", "create")
    assert (again.code, again.out) == (0, "")
    assert taskflow(env, "topics", "check").code == 0

    wrong = taskflow({**env, "TASKFLOW_PARTITIONS": "3"}, "topics", "check")
    assert wrong.code == 1
    assert {line["what"] for line in lines(wrong)} == {"partitions"}


async def test_a_worker_refuses_a_wrong_layout_in_a_sentence(
    env: Environment, broker: EmbeddedBroker, prefix: str
) -> None:
    absent = taskflow(env, "worker")
    assert absent.code == 1
    assert "taskflow topics create" in absent.err

    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(f"{prefix}.audit", 5, 1)])
    await admin.close()
    taskflow(env, "topics", "create")

    wrong = taskflow(env, "worker")

    assert wrong.code == 1
    (sentence,) = wrong.err.splitlines()
    assert f"{prefix}.audit: partitions is 5, must be 2" in sentence


async def test_an_absent_broker_is_code_3_and_one_sentence(tmp_path: Path, prefix: str) -> None:
    """Beside each other: each of them hopes for the broker for as long as the others."""
    file = tmp_path / "commands.jsonl"
    file.write_text(jsonl(create(str(uuid4()))))
    lines = ("worker", f"send {file}", "flow list", "verify", "up --use-broker")
    logs = {line: tmp_path / f"{line.split()[0]}.log" for line in lines}
    started = [
        shared_program().start(
            line.split(), environment("127.0.0.1:1", prefix, tmp_path / line.split()[0]), log
        )
        for line, log in logs.items()
    ]
    async with asyncio.timeout(patience(30)):
        codes = await asyncio.gather(*(one.wait() for one in started))

    for line, code in zip(lines, codes, strict=True):
        (sentence,) = logs[line].read_text().splitlines()
        assert code == 3, (line, sentence)
        assert sentence.startswith("No Kafka broker answers at 127.0.0.1:1 (connection refused)")


def test_a_bad_setting_is_code_2_and_one_sentence(env: Environment) -> None:
    done = taskflow({**env, "TASKFLOW_DEDUPE_WINDOW": "soon"}, "worker")

    assert done.code == 2
    assert done.err.startswith("TASKFLOW_DEDUPE_WINDOW is 'soon', but must be a duration")
    assert done.err.count("\n") == 1


def test_no_secret_is_told_when_the_broker_does_not_let_us_in(env: Environment) -> None:
    done = taskflow(
        {
            **env,
            "TASKFLOW_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "TASKFLOW_SASL_USERNAME": "alice",
            "TASKFLOW_SASL_PASSWORD": "hunter2",
            "TASKFLOW_LOG_LEVEL": "debug",
        },
        "worker",
    )
    assert done.code == 3
    assert "does not let us in as 'alice'" in done.err
    assert "hunter2" not in done.err + done.out


def test_commands_are_sent_answered_and_shown(env: Environment, worker: None) -> None:
    flow, other = str(uuid4()), str(uuid4())

    sent = taskflow(
        env,
        *("send", "--wait"),
        stdin=jsonl(
            create(flow),
            {"kind": "start_running", "flow_id": flow, "issued_by": "me"},
            create(other, by="you"),
            {
                "kind": "set_waiting",
                "flow_id": flow,
                "issued_by": "me",
                "wait": {"kind": "manual"},
            },
        ),
    )
    assert sent.code == 0, sent.err
    assert [line["verdict"] for line in lines(sent)] == ["accepted"] * 4
    assert [line["flow_id"] for line in lines(sent)] == [flow, flow, other, flow]

    refused = taskflow(
        env, "send", "--wait", stdin=jsonl({"kind": "finish", "flow_id": flow, "issued_by": "me"})
    )
    assert refused.code == 1
    assert lines(refused)[0]["code"] == "illegal_transition"

    # The streams
    audit = lines(taskflow(env, "audit"))
    assert {event["flow_id"] for event in audit} == {flow, other}
    kinds = ["created", "started", "waiting"]
    assert [e["kind"] for e in lines(taskflow(env, "audit", "--flow", flow))] == kinds
    assert len(lines(taskflow(env, "outcomes"))) == 5
    assert len(lines(taskflow(env, "outcomes", "--flow", other))) == 1
    assert len(lines(taskflow(env, "outcomes", "--since", "1h"))) == 5
    assert taskflow(env, "outcomes", "--since", "2999-01-01T00:00:00Z").out == ""
    assert taskflow(env, "deadletters").out == ""

    # The flows
    listed = lines(taskflow(env, "flow", "list"))
    assert [line["id"] for line in listed] == [flow, other]
    assert [line["id"] for line in lines(taskflow(env, "flow", "list", "--owner", "you"))] == [
        other
    ]
    waiting = taskflow(env, "flow", "list", "--status", "waiting", "--limit", "1")
    assert [line["id"] for line in lines(waiting)] == [flow]
    (shown,) = lines(taskflow(env, "flow", "show", flow))
    assert shown["flow"] == listed[0]
    # The same from the topic, without a table; and from the tables, without a broker
    elsewhere = {**env, "TASKFLOW_STATE_DIR": f"{env['TASKFLOW_STATE_DIR']}-elsewhere"}
    assert lines(taskflow(elsewhere, "flow", "list")) == listed
    assert lines(taskflow(elsewhere, "flow", "show", flow)) == [shown]
    alone = {**env, "TASKFLOW_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    for arguments, expected in ((("list",), listed), (("show", flow), [shown])):
        done = taskflow(alone, "flow", *arguments)
        assert (done.code, lines(done)) == (0, expected)
        assert "No Kafka broker answers" in done.err
        assert "Shown are the tables in" in done.err
    assert taskflow(alone, "flow", "history", flow).code == 3
    history = lines(taskflow(env, "flow", "history", flow))
    assert [event["kind"] for event in history] == kinds
    assert all(event["explained"]["command"] for event in history)

    # As it was, and who did it
    (was,) = lines(taskflow(env, "flow", "show", flow, "--revision", "0"))
    assert (was["flow"]["status"], was["as_of"]["kind"]) == ("created", "created")
    changed = {line["path"] for line in lines(taskflow(env, "flow", "diff", flow, "0", "2"))}
    assert {"$.status", "$.revision", "$.wait_json"} <= changed
    (blamed,) = lines(taskflow(env, "flow", "blame", flow, "$.status"))
    assert (blamed["after"], blamed["command"]["kind"]) == ("waiting", "set_waiting")
    checked = taskflow(env, "replay", "check")
    assert checked.code == 0, checked.out
    assert lines(checked)[0]["compared"]["commands"] == 5

    # An operator
    (resumed,) = lines(taskflow(env, "flow", "resume", flow))
    assert (resumed["verdict"], resumed["status"]) == ("accepted", "running")
    assert taskflow(env, "flow", "cancel", flow).code == 0
    last = lines(taskflow(env, "flow", "history", flow))[-1]
    assert last["kind"] == "cancelled"
    assert str(last["actor"]).startswith("operator:")
    again = taskflow(env, "flow", "cancel", flow)
    assert again.code == 1
    assert lines(again)[0]["code"] == "already_terminal"


def test_what_has_ended_is_pruned_by_hand_and_its_history_stays(
    env: Environment, worker: None
) -> None:
    mine, yours, waiting = (str(uuid4()) for _ in range(3))

    def commands(flow: str, by: str, last: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield create(flow, by)
        yield {"kind": "start_running", "flow_id": flow, "issued_by": by}
        yield {"flow_id": flow, "issued_by": by, **last}

    manual = {"kind": "set_waiting", "wait": {"kind": "manual"}}
    stdin = jsonl(
        *commands(mine, "me", {"kind": "finish"}),
        *commands(yours, "you", {"kind": "fail", "reason": "tired"}),
        *commands(waiting, "me", manual),
    )
    assert taskflow(env, "send", "--wait", stdin=stdin).code == 0
    (waits,) = lines(taskflow(env, "flow", "list", "--waiting"))
    assert (waits["id"], waits["wait_json"]) == (waiting, {"kind": "manual"})

    listed = taskflow(env, "prune", "--older-than", "0s", "--dry-run")
    assert {(line["flow_id"], line["status"]) for line in lines(listed)} == {
        (mine, "finished"),
        (yours, "failed"),
    }
    assert (listed.code, listed.err) == (0, "2 flows would be pruned.\n")
    assert taskflow(env, "prune", "--older-than", "1h", "--dry-run").out == ""

    pruned = {"verdict": "accepted", "code": None, "flows": 1}
    for owner in (["--owner", "you"], []):
        done = taskflow(env, "prune", "--older-than", "0s", "--yes", *owner)
        assert (done.code, lines(done), done.err) == (0, [pruned], "")
    again = taskflow(env, "prune", "--older-than", "0s", "--yes")
    assert (again.code, again.out) == (0, "")
    assert again.err == "There is nothing to prune.\n"

    assert [line["id"] for line in lines(taskflow(env, "flow", "list"))] == [waiting]
    history = lines(taskflow(env, "flow", "history", mine))
    kinds = ["created", "started", "finished", "pruned"]
    assert [event["kind"] for event in history] == kinds
    assert str(history[-1]["actor"]).startswith("operator:")


def test_an_unknown_flow_is_code_1_and_a_sentence(env: Environment) -> None:
    taskflow(env, "topics", "create")
    for noun in ("show", "history"):
        done = taskflow(env, "flow", noun, str(uuid4()))
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("There is no flow ")


def test_without_wait_the_places_are_printed_and_no_worker_is_needed(
    env: Environment, prefix: str
) -> None:
    taskflow(env, "topics", "create")
    command = create(str(uuid4()), command_id=str(uuid4()))

    done = taskflow(env, "send", stdin=jsonl(command))

    (place,) = lines(done)
    assert place["command_id"] == command["command_id"]
    assert (place["topic"], place["offset"]) == (f"{prefix}.commands", 0)


def test_a_line_that_is_no_command_ends_it_behind_what_came_before(env: Environment) -> None:
    taskflow(env, "topics", "create")
    good = jsonl(create(str(uuid4())))

    for bad in ("{oops\n", "[1]\n", '{"kind": "dance"}\n'):
        done = taskflow(env, "send", stdin=good + "\n" + bad + good)
        assert done.code == 2
        assert len(lines(done)) == 1
        assert done.err.startswith("Line 3: ")
        assert "Nothing after it was sent; before it: 1." in done.err


def test_without_a_worker_the_wait_ends(env: Environment, tmp_path: Path) -> None:
    taskflow(env, "topics", "create")
    file = tmp_path / "commands.jsonl"
    file.write_text(jsonl(create(str(uuid4()))))

    done = taskflow(env, "send", str(file), "--wait", "--timeout", "500ms")

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Line 1: No outcome came within 0.5 s")


async def test_what_is_no_command_becomes_a_dead_letter(
    env: Environment, worker: None, broker: EmbeddedBroker, prefix: str
) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        await producer.send_and_wait(f"{prefix}.commands", b"\xff{", key=b"somebody", partition=0)
    flow = str(uuid4())
    # Answered on both partitions: then the first one is decided, too.
    while taskflow(env, "send", "--wait", stdin=jsonl(create(flow))).code:
        flow = str(uuid4())

    with running(env, "deadletters", "--follow", "--from-beginning") as following:
        assert following.stdout is not None
        dead_letter = json.loads(following.stdout.readline())
        following.send_signal(signal.SIGINT)
        _, output = following.communicate(timeout=patience(20))

    assert dead_letter["value"] == {"base64": "/3s="}
    assert dead_letter["key"] == "somebody"
    assert ["taskflow-code", "malformed"] in dead_letter["headers"]
    assert (following.returncode, output) == (130, "")


def test_a_reader_that_has_had_enough_is_no_error(env: Environment, worker: None) -> None:
    commands = [create(str(uuid4()), goal="x" * 4000) for _ in range(60)]
    assert taskflow(env, "send", "--wait", stdin=jsonl(*commands)).code == 0

    with running(env, "audit") as reading:
        assert reading.stdout is not None
        reading.stdout.readline()
        reading.stdout.close()
        assert reading.wait(timeout=patience(30)) == 0
        assert reading.stderr is not None
        assert reading.stderr.read() == ""


def test_up_is_everything_until_ctrl_c_and_a_broker_has_its_data(
    prefix: str, tmp_path: Path
) -> None:
    env = environment(f"127.0.0.1:{free_port()}", prefix, tmp_path)
    flow = str(uuid4())
    with running(env, "up") as up:
        until_said(up, "taskflow is up")
        assert taskflow(env, "flow", "list").out == ""
        assert taskflow(env, "send", "--wait", stdin=jsonl(create(flow))).code == 0
        children = psutil.Process(up.pid).children(recursive=True)
        assert children
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=patience(60)) == 0
        _, left = psutil.wait_procs(children, timeout=patience(10))
        assert left == []

    with running(env, "broker") as broker:
        until_said(broker, "answers at")
        assert [one["id"] for one in lines(taskflow(env, "flow", "list"))] == [flow]
        taken = taskflow(env, "broker")
        assert taken.code == 1
        assert taken.err.splitlines()[-1].startswith(f"{tmp_path / 'broker'} is in use")
        broker.send_signal(signal.SIGTERM)
        assert broker.wait(timeout=patience(60)) == 0


def until_said(process: subprocess.Popen[str], words: str) -> None:
    """Read its standard error until there is a line with `words`."""
    assert process.stderr is not None
    while words not in (line := process.stderr.readline()):
        assert line, "it ended"


def assert_demo(output: str) -> None:
    for word in ("accepted", "duplicate", "forwarded", "malformed", "not_owner", "commands in"):
        assert word in output
    for word in ("taskflow:timer", "by timer", "by timeout", "by external_event"):
        assert word in output
    assert output.count("\n") <= LINES_MAX
    assert "53 flows" in output.partition("What the views have seen")[2]


@pytest.mark.soak
def test_the_demo_does_the_main_job_and_leaves_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with running(env, "demo") as demo:
        seen: set[psutil.Process] = set()
        while demo.poll() is None:
            with contextlib.suppress(psutil.Error):
                seen |= set(psutil.Process(demo.pid).children(recursive=True))
            with contextlib.suppress(subprocess.TimeoutExpired):
                demo.wait(timeout=0.2)
        output, complaints = demo.communicate()

    assert demo.returncode == 0, complaints
    assert_demo(output)
    assert len(seen) >= 4  # supervisor, JVM, worker, views
    _, left = psutil.wait_procs(seen, timeout=patience(10))
    assert left == []
    assert not list(tmp_path.iterdir())


def test_a_demo_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with running(env, "demo") as demo:
        assert demo.stdout is not None
        while "sending it commands" not in (line := demo.stdout.readline()):
            assert line, "it ended"
        children = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGINT)
        _, complaints = demo.communicate(timeout=patience(60))

    assert (demo.returncode, complaints) == (130, "")
    assert len(children) >= 2  # the broker and its supervisor, and what has started since
    _, left = psutil.wait_procs(children, timeout=patience(10))
    assert left == []
    assert not list(tmp_path.iterdir())


def test_a_demo_that_is_kept_does_the_main_job_and_answers_until_ctrl_c(tmp_path: Path) -> None:
    """In a process group of its own, which is what Ctrl-C reaches."""
    env = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "TASKFLOW_VIEWS_HTTP": f"127.0.0.1:{free_port()}",
    }
    with running(env, "demo", "--keep", process_group=0) as demo:
        assert demo.stdout is not None
        output = ""
        while "Ctrl-C ends it all" not in output:
            line = demo.stdout.readline()
            assert line, "it ended"
            output += line
        assert_demo(output)
        url = output.partition("Look at ")[2].split()[0]
        assert url == f"http://{env['TASKFLOW_VIEWS_HTTP']}"
        with urlopen(url, timeout=patience(10)) as page:
            assert b"<title>taskflow</title>" in page.read()
        with urlopen(f"{url}/v1/flows?limit=100", timeout=patience(10)) as response:
            assert len(json.load(response)["items"]) == 53
        children = psutil.Process(demo.pid).children(recursive=True)
        os.killpg(demo.pid, signal.SIGINT)
        output, complaints = demo.communicate(timeout=patience(60))

    assert (demo.returncode, complaints) == (0, "")
    assert "Nothing is left running" in output
    assert len(children) == 4
    _, left = psutil.wait_procs(children, timeout=patience(10))
    assert left == []
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_a_demo_that_is_kept_ends_with_what_it_shows(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "TASKFLOW_VIEWS_HTTP": f"127.0.0.1:{free_port()}",
    }
    with running(env, "demo", "--keep") as demo:
        assert demo.stdout is not None
        while "Ctrl-C ends it all" not in (line := demo.stdout.readline()):
            assert line, "it ended"
        (views,) = (
            child for child in psutil.Process(demo.pid).children() if "views" in child.cmdline()
        )
        views.kill()
        _, complaints = demo.communicate(timeout=patience(60))

    assert demo.returncode == 1
    assert complaints.startswith("The view worker ended with code -9")
    assert not list(tmp_path.iterdir())


def assert_signals_are_delivered(env: Environment) -> None:
    flow = str(uuid4())
    wait = {"kind": "external_event", "topic": "payments", "correlation_id": "order-17"}
    commands = jsonl(
        create(flow) | {"kind": "create_mirrored"},
        {"kind": "set_waiting", "flow_id": flow, "issued_by": "me", "wait": wait},
    )
    assert taskflow(env, "signal", "send", "payments", "order-17", "--data", "17").code == 0
    assert taskflow(env, "send", "--wait", stdin=commands).code == 0
    deadline = time.monotonic() + patience(60)
    while lines(taskflow(env, "flow", "list"))[0]["status"] == "waiting":
        assert time.monotonic() < deadline
    (resumed,) = lines(taskflow(env, "flow", "list"))
    assert (resumed["status"], resumed["state_json"]) == ("running", {"resume_event": 17})


def test_up_asks_before_it_uses_a_broker_that_is_there(env: Environment) -> None:
    refused = taskflow(env, "up")
    assert refused.code == 2
    assert f"A Kafka broker already answers at {env['TASKFLOW_BOOTSTRAP_SERVERS']}" in (refused.err)
    assert "`--use-broker`" in refused.err
    assert len(lines(taskflow(env, "topics", "check"))) == 7, "no topic was made"

    with_signals = {**env, "TASKFLOW_SIGNALS_HTTP": "off"}
    with running(with_signals, "up", "--use-broker", "--signals") as up:
        until_said(up, "taskflow is up")
        assert_signals_are_delivered(env)
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=patience(30)) == 0


@pytest.mark.parametrize("setting", ["TASKFLOW_HTTP", "TASKFLOW_VIEWS_HTTP"])
def test_up_takes_its_ports_before_it_starts_kafka(
    prefix: str, tmp_path: Path, setting: str
) -> None:
    env = environment(f"127.0.0.1:{free_port()}", prefix, tmp_path / "state")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = taskflow({**env, setting: address}, "up")

    assert refused.code == 1
    assert refused.err.startswith(f"Cannot listen on {address} (")
    assert f"set {setting} to another address" in refused.err
    assert not (tmp_path / "state").exists(), "no Kafka was started"
