"""The program's edges against a real broker: outputs that fail, and things that do not exist."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaProducer

from processor.cli.flow.execute import login
from processor.cli.main import DONE, REFUSED, WRONG_USE
from processor.client import FlowClient, flow_id_for
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.cli_runner import child_worker
from tests.support.forked_program import STREAMS, ForkedProgram, Result, shared_program

FLOW = "6f1f3a52-0000-4000-8000-000000000001"
WAITING = "7f1f3a52-0000-4000-8000-000000000002"
NOBODYS = "6f1f3a52-0000-4000-8000-00000000ffff"
STATE = "state ?#%41" if sys.platform == "darwin" else os.fsdecode(b"st\xe4te ?#%41")
"""Names that a URI would have to quote, and that are not UTF-8."""
BAD = b'{"kind": "finish", "flow_id": "x"}'


class Deployment(NamedTuple):
    taskflow: ForkedProgram
    settings: Settings
    directory: Path
    dead_letter: str
    """Where the one dead letter is."""

    def run(self, *words: str, **how: Any) -> Result:
        """`words` with the names of things of this deployment put in."""
        names = {
            "directory": str(self.directory),
            "prefix": self.settings.topic_prefix,
            "letter": self.dead_letter,
            **{"flow": FLOW, "waiting": WAITING, "nobodys": NOBODYS},
        }
        return self.taskflow(*(word.format(**names) for word in words), **how)


async def _populate(settings: Settings) -> None:
    about = {"controller_id": "c", "goal": "g", "requester_origin": "r", "state_json": {"n": 1}}
    async with FlowClient(settings) as client:
        for flow_id in (FLOW, WAITING):
            mine = {"flow_id": flow_id, "issued_by": "me"}
            await client.send({"kind": "create_mirrored", **mine, **about})
        await client.send({"kind": "update_state", "flow_id": FLOW, "issued_by": "me", "patch": {}})
        step = {"kind": "schedule_step", "run_id": "bill", "task": "bill"}
        await client.send({**step, "flow_id": WAITING, "issued_by": "me"})
        wait = {"kind": "manual"}
        mine = {"flow_id": WAITING, "issued_by": "me"}
        await client.send({"kind": "set_waiting", **mine, "wait": wait})
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            topic = f"{settings.topic_prefix}.commands"
            await producer.send_and_wait(topic, BAD, key=FLOW.encode())
        await client.send({"kind": "finish", "flow_id": FLOW, "issued_by": "me"})


@pytest.fixture(scope="module")
def deployment(
    broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("edges")
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix="edges",
        partitions=2,
        state_dir=directory
        / ("state" if sys.platform == "darwin" else os.fsdecode(b"st\xe4te ?#%41")),
        http=None,
    )
    environment = {
        "TASKFLOW_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TASKFLOW_TOPIC_PREFIX": settings.topic_prefix,
        "TASKFLOW_PARTITIONS": "2",
        "TASKFLOW_STATE_DIR": str(settings.state_dir),
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_VIEWS_HTTP": "127.0.0.1:1",
    }
    commands = directory / "commands.jsonl"
    look = {"kind": "request_cancel", "flow_id": FLOW, "issued_by": "me", "dry_run": True}
    commands.write_text("".join(json.dumps(look) + "\n" for _ in range(3)))
    taskflow = shared_program().where(environment)
    with child_worker(settings):
        asyncio.run(_populate(settings))
        listed = taskflow("deadletters", "list")
        assert (listed.code, listed.err) == (DONE, "")
        (dead_letter,) = map(json.loads, listed.out.splitlines())
        assert dead_letter["code"] == "invalid_command"
        yield Deployment(taskflow, settings, directory, dead_letter["letter"])


PRINTS = [
    ("topics check --json", DONE, False),  # all is well: it says so on standard error
    ("audit", DONE, True),
    ("outcomes", DONE, True),
    ("deadletters", DONE, True),
    ("deadletters list", DONE, True),
    ("deadletters list --redriven", DONE, True),
    ("deadletters show {letter}", DONE, True),
    ("deadletters redrive --all --dry-run", DONE, True),
    ("flow list", DONE, True),
    ("flow list --waiting", DONE, True),
    ("flow show {flow}", DONE, True),
    ("flow show {flow} --revision 1", DONE, True),
    ("flow history {flow}", DONE, True),
    ("flow diff {flow} 1 2", DONE, True),
    ("flow blame {flow} status", DONE, True),
    ("flow resume {flow}", REFUSED, True),
    ("send --wait {directory}/commands.jsonl", DONE, True),
    ("send {directory}/commands.jsonl", DONE, True),
    ("step list --task bill", DONE, True),
    ("step show {waiting} bill", DONE, True),
    ("steps", DONE, True),
    ("bulk cancel --all --dry-run", DONE, True),
    ("bulk cancel_step --task bill --dry-run", DONE, True),
    ("prune --older-than 0s --dry-run", DONE, True),
    ("doctor --probe", DONE, True),
    ("verify", DONE, True),
    ("export {directory}/flows.db --yes", DONE, True),
    ("replay check", DONE, True),
    ("replay export {directory}/history.gz --overwrite", DONE, True),
    ("replay group nobodys-group --to beginning --dry-run", DONE, True),
    ("rebuild --skip-lost --dry-run", DONE, False),
    ("repartition --to 3 --prefix edges-copy --dry-run --carry-undecided", REFUSED, True),
]


ON_STREAMS = [
    # Of the streams that fail, each command has its turn with one, and with all in `make soak`.
    pytest.param(
        *case,
        stdout,
        marks=() if stdout in (None, STREAMS[nth % len(STREAMS)]) else pytest.mark.soak,
    )
    for nth, case in enumerate(PRINTS)
    for stdout in (None, *STREAMS)
]


@pytest.mark.parametrize(
    ("line", "code", "prints", "stdout"), ON_STREAMS, ids=lambda value: str(value)
)
def test_what_prints_ends_as_it_should_whatever_standard_output_is(
    line: str, code: int, prints: bool, stdout: str | None, deployment: Deployment
) -> None:
    """A reader that has gone changes nothing but what is read. Output that is lost is an error."""
    done = deployment.run(*line.split(), stdout=stdout)
    assert "Traceback" not in done.err, done.err
    if stdout is None:
        assert (done.code, bool(done.out)) == (code, prints), done
    elif prints and stdout != "broken":
        assert done.code == REFUSED, done
        assert "Standard output cannot be written" in done.err
    else:
        assert done.code == code, done


MISSING = [
    ("deadletters show 9/9", REFUSED, "There is no dead letter 9/9 under 'edges'"),
    ("deadletters show 0/999999999999999999", REFUSED, "There is no dead letter 0/999999999999"),
    ("deadletters edit 9/9 --value {directory}/commands.jsonl", REFUSED, "no dead letter 9/9"),
    ("deadletters redrive 9/9 --yes", REFUSED, "There is no dead letter 9/9"),
    ("deadletters redrive {letter} 9/9 --yes", REFUSED, "There is no dead letter 9/9"),
    ("deadletters show 0/x", WRONG_USE, "'0/x' is not a place of a dead letter"),
    ("deadletters show 1" + "0" * 5000 + "/0", WRONG_USE, "is not a place of a dead letter"),
    ("deadletters show -- -1/0", WRONG_USE, "'-1/0' is not a place"),
    ("deadletters list --code nonsense", DONE, ""),
    ("deadletters redrive --code nonsense --yes", DONE, "Nothing is to be sent."),
    ("flow show {nobodys}", REFUSED, "There is no flow"),
    ("flow history {nobodys}", REFUSED, "There is no flow"),
    ("flow diff {nobodys} 0 1", REFUSED, "There is no flow"),
    ("flow blame {nobodys} status", REFUSED, "There is no flow"),
    ("flow cancel {nobodys}", REFUSED, ""),
    ("flow resume {nobodys}", REFUSED, ""),
    ("flow show {flow} --revision 99", REFUSED, "has revisions 0 to"),
    ("flow show {flow} --revision 1 --life 99", REFUSED, "has had one life"),
    ("flow show {flow} --revision 1" + "0" * 5000, WRONG_USE, ""),
    ("flow show {flow} --at 2001-01-01T00:00:00Z", REFUSED, "it was created later"),
    ("flow diff {flow} 0 99", REFUSED, "has revisions 0 to"),
    ("flow blame {flow} state.nothing", REFUSED, "Nothing ever stood at $.state_json.nothing"),
    ("flow blame {flow} price", WRONG_USE, "no field 'price'"),
    ("step show {flow} nothing", REFUSED, ""),
    ("step show {nobodys} bill", REFUSED, ""),
    ("step retry {flow} nothing", REFUSED, ""),
    ("step cancel {nobodys} bill", REFUSED, ""),
    ("step schedule {flow} x --task t --timeout-at 999999999999d", WRONG_USE, "the year 9999"),
    ("step schedule {flow} x --task t --lease 999999999999d", WRONG_USE, "was not sent"),
    ("step list --limit 1" + "0" * 30, WRONG_USE, "less than or equal to 1000000"),
    ("step show me bill", WRONG_USE, "'me'"),
    ("steps --flow {nobodys}", DONE, ""),
    ("flow list --owner nobody", DONE, ""),
    ("flow list --where nothing=1", WRONG_USE, "no field 'nothing'"),
    ("flow list --where state.nothing=1", DONE, "where $.state_json.nothing = 1"),
    ("flow list --limit 1" + "0" * 30, WRONG_USE, "less than or equal to 1000000"),
    ("bulk cancel --where state.label!==x --dry-run", WRONG_USE, "write !="),
    ("bulk cancel --where state.label==x --dry-run", WRONG_USE, "write ="),
    ("bulk cancel --where nothing=1 --dry-run", WRONG_USE, "no field 'nothing'"),
    ("bulk cancel --where state.nothing=1 --dry-run", DONE, "where $.state_json.nothing = 1"),
    ("bulk cancel --owner nobody --yes", DONE, "No flows match."),
    ("bulk cancel --all --digest 0000", REFUSED, "The digest is"),
    ("bulk cancel --task bill --dry-run", WRONG_USE, "are for retry_step and cancel_step"),
    ("bulk cancel --status pending --dry-run", WRONG_USE, "No flow is pending"),
    ("bulk retry_step --status waiting --dry-run", WRONG_USE, "No step is waiting"),
    ("bulk retry_step --task nothing --yes", DONE, "No steps match."),
    ("bulk cancel_step --task bill --attempts 2 --yes", WRONG_USE, "belongs to retry_step"),
    ("prune --older-than 999999999999d --dry-run", DONE, "0 flows would be pruned."),
    ("flow cancel {nobodys} --timeout 999999999999d", REFUSED, ""),
    ("rebuild --partition 9 --check", WRONG_USE, "There is no partition 9"),
    ("rebuild --partition 1" + "0" * 5000 + " --check", WRONG_USE, ""),
    ("replay check --partition 9", WRONG_USE, "There is no partition 9"),
    ("replay check {directory}/nothing.gz", WRONG_USE, "is no file"),
    ("replay check {directory}/commands.jsonl", REFUSED, "cannot be read as a history"),
    ("replay export {directory}/nowhere/history.gz", WRONG_USE, "is no directory"),
    ("replay to nowhere --dry-run", REFUSED, "nowhere does not exist"),
    ("replay to edges.audit --dry-run", WRONG_USE, "one of taskflow's own topics"),
    ("replay to nowhere --offsets 9:0- --dry-run", REFUSED, "nowhere does not exist"),
    ("replay to nowhere --offsets 1" + "0" * 5000 + ":0- --dry-run", WRONG_USE, "--offsets is"),
    ("replay group nobodys --to end --topic nowhere --dry-run", REFUSED, "does not exist"),
    ("verify --flow {nobodys}", DONE, ""),
    ("audit --flow {nobodys}", DONE, ""),
    ("audit --since 9999-12-31T23:59:59Z", DONE, ""),
    ("audit --since 0001-01-01T00:00:00Z", DONE, ""),
    ("outcomes --since 999999999999d", DONE, ""),
    ("export {directory}/nowhere/flows.db", WRONG_USE, "There is no directory"),
    ("send {directory}/nothing.jsonl", WRONG_USE, "is no file"),
    ("top --once --views 127.0.0.1:1", REFUSED, "No views answer"),
    ("top --once --views nonsense:x", WRONG_USE, "--views is"),
    ("repartition --to 3 --prefix edges", WRONG_USE, "--yes"),
    ("repartition --to 3 --prefix edges --yes", WRONG_USE, "is the old side's own"),
    ("repartition --to 3 --prefix nothing-there --check", REFUSED, "are not whole"),
]


@pytest.mark.parametrize(
    ("line", "code", "said"), MISSING, ids=lambda value: str(value)[:60].replace(" ", "_")
)
def test_what_does_not_exist_is_said(
    line: str, code: int, said: str, deployment: Deployment
) -> None:
    done = deployment.run(*line.split())
    assert done.code == code, done
    assert " ".join(said.split()) in " ".join(done.err.split())
    assert "Traceback" not in done.err + done.out


def test_the_beginning_of_an_id_stands_for_it(deployment: Deployment) -> None:
    for line in ("show {flow}", "history {flow}", "blame {flow} status", "diff {flow} 0 1"):
        whole = deployment.run("flow", *line.split())
        assert deployment.run("flow", *line.format(flow=FLOW[:8]).split()) == whole
        assert whole.code == DONE
    assert deployment.run("step", "show", WAITING[:8].upper(), "bill").code == DONE
    for command in ("audit", "outcomes", "steps"):
        whole = deployment.run(command, "--flow", WAITING)
        assert whole.out
        assert deployment.run(command, "--flow", WAITING[:10]) == whole
    unknown = deployment.run("flow", "cancel", "0000")
    assert unknown.code == REFUSED
    assert "No flow's id begins with 0000" in unknown.err


def test_a_flow_is_created_started_finished_and_watched_by_hand(deployment: Deployment) -> None:
    flow_id = flow_id_for("order-17")
    state = ("--state", '{{"cents": 4200}}')
    created = deployment.run("flow", "create", "Ship order 17", "--key", "order-17", *state)
    assert json.loads(created.out)["flow_id"] == flow_id
    assert deployment.run("flow", "create", "Again", "--key", "order-17").code == REFUSED
    assert deployment.run("flow", "start", flow_id[:8]).code == DONE
    done = deployment.run("flow", "finish", flow_id[:8], "--state", '{{"shipped": true}}')
    assert json.loads(done.out)["status"] == "finished"

    watched = deployment.run("flow", "watch", flow_id[:8])
    assert watched.code == DONE
    events = [json.loads(line) for line in watched.out.splitlines()]
    assert [event["kind"] for event in events] == ["created", "started", "finished"]
    assert {event["actor"] for event in events} == {f"operator:{login()}"}
    assert deployment.run("flow", "watch", flow_id, "--until", "waiting").code == REFUSED
    (shown,) = map(json.loads, deployment.run("flow", "show", flow_id).out.splitlines())
    assert shown["flow"]["state_json"] == {"cents": 4200, "shipped": True}


def test_a_topic_for_a_replay_is_made_as_it_must_be(deployment: Deployment) -> None:
    assert deployment.run("topics", "create", "edges.rebuild").code == DONE
    assert deployment.run("replay", "to", "edges.rebuild", "--dry-run").code == DONE
    again = deployment.run("topics", "create", "edges.rebuild")
    assert (again.code, again.out, again.err) == (DONE, "", "All of them are there already.\n")
    refused = deployment.run("topics", "create", "edges.audit")
    assert refused.code == WRONG_USE
    assert "edges.audit is one of the seven" in refused.err


def test_a_state_directory_may_have_any_name(deployment: Deployment) -> None:
    """The worker has its tables in one that is not UTF-8, and they are found there."""
    found = [json.loads(line) for line in deployment.run("doctor").out.splitlines()]
    tables = [line for line in found if line["check"] == "tables"]
    assert {line["level"] for line in tables} == {"good"}
    assert "there are none" not in str(tables)
    assert deployment.run("flow", "list").err == ""


def test_a_dead_letter_of_an_invalid_command_names_its_errors(deployment: Deployment) -> None:
    (listed,) = map(json.loads, deployment.run("deadletters", "list").out.splitlines())
    assert {fault["path"] for fault in listed["faults"]} >= {"$.flow_id", "$.issued_by"}
    (shown,) = map(json.loads, deployment.run("deadletters", "show", "{letter}").out.splitlines())
    assert shown["faults"] == listed["faults"]
