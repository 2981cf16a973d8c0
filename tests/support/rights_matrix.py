"""Each role without each of its rights, in turn, at a real Kafka: what says so, and in what words.

    python -m tests.support.rights_matrix

runs all of it and writes both tables into processor/docs/security.md.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from aiohttp import ClientSession

from processor.adapters.kafka.access.authorization import ensure_rights, ensure_startable
from processor.adapters.kafka.admin.topic_admin import create_signal_topics, create_topics
from processor.adapters.kafka.errors import NotAuthorized
from processor.client import (
    AuditStream,
    CommandNotSent,
    FlowClient,
    OutcomeTimeout,
    Step,
    StepWorker,
)
from processor.client.signals.signal_client import SignalClient
from processor.contract.rights import ROLES, Operation, ResourceKind, Right, Role, rights
from processor.contract.topics import Topics
from processor.embedded.broker import free_port
from processor.settings import Settings
from processor.signals.service import SignalService
from processor.worker.composition import run_worker
from tests.support.forked_program import ForkedProgram, Result, shared_program
from tests.support.machine import patience
from tests.support.rights_deployment import (
    SAYS_WITHIN_S,
    Deployment,
    Row,
    assert_decided_once,
    command,
    deployment,
    publish_rubbish,
    said,
)
from tests.support.secured_kafka import SecuredKafka, secured_kafka
from tests.support.views import ViewProcess
from tests.support.worker import running_worker

GOES_ON_WITHIN_S: Final = patience(60)
AT_ONCE: Final = 4
"""Workers that run beside each other."""
START, RUNNING = "start", "running"
DOC: Final = Path(__file__).parents[2] / "processor" / "docs" / "security.md"

Chosen = Callable[[Role, Right, str], bool]


def everything(_role: Role, _right: Right, _phase: str) -> bool:
    return True


def one_of_each(role: Role, right: Right, phase: str) -> bool:
    """Enough to meet each way in which Kafka refuses: what runs in seconds."""
    topic = right.resource.name.rpartition(".")[2]
    if phase == START:
        several = (Role.VIEWS, Role.VIEWS_ACTING, Role.SIGNALS, Role.ADMIN, Role.WORKER)
        group = role is Role.WORKER and right.resource.kind is not ResourceKind.TOPIC
        return role not in several or topic == "audit" or group
    match role:
        case Role.VIEWS_ACTING:
            return right.operation is Operation.WRITE and topic == "control"
        case Role.VIEWS:  # one after the other, and each shows after seconds
            hidden = right.operation is Operation.DESCRIBE and topic == "control"
            return hidden or (right.operation is Operation.READ and topic == "audit")
        case Role.WORKER:
            # All that a transaction writes is refused as outcomes are.
            written = right.operation is Operation.WRITE and topic == "outcomes"
            return written or right.resource.kind is not ResourceKind.TOPIC or topic == "commands"
        case Role.OPERATOR:
            return topic == "control" or right.resource.kind is ResourceKind.GROUP
        case _:
            return True


def as_table(rows: Iterable[Row]) -> str:
    lines = ["| role | without | shows in | says |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.role} | {row.without} | {row.by} | {row.says} |" for row in rows]
    return "\n".join(lines)


def rights_table() -> str:
    """The table of rights, as the documentation has it."""
    lines = ["| role | needs | on | to |", "| --- | --- | --- | --- |"]
    for role in Role:
        lines.append(f"| **{role}** | | | {ROLES[role]} |")
        lines += [
            f"| {role} | {right.operation} | {right.resource} | {right.purpose} |"
            for right in _rights(role)
        ]
    return "\n".join(lines)


def documented(name: str) -> str:
    """What stands between the two comments of that name in the documentation."""
    _, _, rest = DOC.read_text("utf-8").partition(f"<!-- {name}: begin -->\n")
    found, end, _ = rest.partition(f"\n<!-- {name}: end -->")
    assert end, f"{DOC} has no table of that name: {name}"
    return found


def document(name: str, text: str) -> None:
    """Put `text` there."""
    before, begin, rest = DOC.read_text("utf-8").partition(f"<!-- {name}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->")
    DOC.write_text(f"{before}{begin}{text}\n{end}{after}", "utf-8")


# The roles


async def worker_starts(kafka: SecuredKafka, chosen: Chosen) -> list[Row]:
    """Of the worker's rights, when it starts."""
    place = await deployment(kafka, Role.WORKER)
    rows = []
    with tempfile.TemporaryDirectory() as state_dir:
        settings = place.settings(state_dir=Path(state_dir))
        for right in place.rights:
            if chosen(Role.WORKER, right, START):
                async with place.without(right):
                    starting = run_worker(settings, stop=asyncio.Event())
                    sentence = await said(starting, NotAuthorized)
                rows.append(place.row(right, "its start", sentence))
    return rows


async def worker_runs(kafka: SecuredKafka, number: int, chosen: Chosen) -> list[Row]:
    """Of the worker's right `number`, while it runs."""
    if not chosen(Role.WORKER, _rights(Role.WORKER)[number], RUNNING):
        return []
    place = await deployment(kafka, Role.WORKER)
    right = place.rights[number]
    with tempfile.TemporaryDirectory() as state_dir:
        settings = place.settings(http="127.0.0.1:0", state_dir=Path(state_dir))
        sentence = await _denied_while_running(place, right, settings)
    return [place.row(right, "`/ready`", sentence)]


async def _denied_while_running(place: Deployment, right: Right, settings: Settings) -> str:
    stop, ready = asyncio.Event(), asyncio.Event()
    listening: list[Any] = []
    worker = asyncio.create_task(
        run_worker(settings, stop=stop, ready=ready, listening=listening.append)
    )
    async with (
        asyncio.timeout(SAYS_WITHIN_S + 2 * GOES_ON_WITHIN_S),
        FlowClient(place.administrator()) as client,
        ClientSession() as session,
    ):
        await ready.wait()

        async def response() -> dict[str, Any]:
            async with session.get(f"http://{listening[0]}/ready") as response:
                body: dict[str, Any] = await response.json()
                assert (response.status == 200) is body["ready"]
                return body

        def send(count: int) -> list[asyncio.Task[Any]]:
            timeout_s = 2 * GOES_ON_WITHIN_S
            return [
                asyncio.create_task(client.send(command(), timeout_s=timeout_s))
                for _ in range(count)
            ]

        await asyncio.gather(*send(2))
        await place.forbid([right])
        began = time.monotonic()
        sent = send(3)
        await publish_rubbish(place.administrator())
        while (body := await response())["denied"] is None:
            assert time.monotonic() - began < SAYS_WITHIN_S, body
            await asyncio.sleep(0.05)
        assert not body["ready"]
        denied = str(body["denied"])
        await place.allow([right])
        outcomes = await asyncio.gather(*sent)
        assert {outcome.verdict for outcome in outcomes} == {"accepted"}
        while not body["ready"]:
            await asyncio.sleep(0.05)
            body = await response()
        await assert_decided_once(place, 6)
        stop.set()
        await worker
    return denied


async def producer_rows(place: Deployment, chosen: Chosen) -> list[Row]:
    write, await_ = place.rights
    assert write.operation is Operation.WRITE
    rows = []
    if chosen(Role.PRODUCER, write, START):
        async with place.without(write):
            sentence = await said(FlowClient(place.settings()).__aenter__(), NotAuthorized)
        rows.append(place.row(write, "`FlowClient`, entered", sentence))
    async with FlowClient(place.settings()) as client:
        one = client.prepare(command())
        if chosen(Role.PRODUCER, write, RUNNING):
            await client.publish(command())
            async with place.without(write):
                sentence = await said(client.publish(one), CommandNotSent)
            rows.append(place.row(write, "`publish`", sentence))
        assert (await client.send(one, timeout_s=GOES_ON_WITHIN_S)).verdict == "accepted"
    two = client.prepare(command())
    if chosen(Role.PRODUCER, await_, START):
        async with FlowClient(place.settings()) as client, place.without(await_):
            sentence = await said(client.send(two), NotAuthorized)
        rows.append(place.row(await_, "`send`, the first", sentence))
    if chosen(Role.PRODUCER, await_, RUNNING):
        async with FlowClient(place.settings()) as client:
            assert (
                await client.send(two, timeout_s=GOES_ON_WITHIN_S)
            ).verdict == "accepted"  # it was not sent before
            sent = []

            async def go_on() -> None:
                """A fetch that is under way when the right is taken away is still answered."""
                while True:
                    sent.append(client.prepare(command()))
                    await client.send(sent[-1])

            async with place.without(await_):
                sentence = await said(go_on(), OutcomeTimeout, NotAuthorized)
            rows.append(place.row(await_, "`send`", sentence))
            assert (await client.send(sent[-1], timeout_s=GOES_ON_WITHIN_S)).verdict in (
                "accepted",
                "duplicate",
            )
    return rows


async def executor_rows(place: Deployment, chosen: Chosen) -> list[Row]:
    async def enter() -> None:
        group = f"{place.prefix}.steps.wash"
        async with StepWorker({"wash": _nothing}, group=group, settings=place.settings()):
            pass

    rows = []
    for right in place.rights:
        if chosen(Role.EXECUTOR, right, START):
            async with place.without(right):
                sentence = await said(enter(), NotAuthorized)
            rows.append(place.row(right, "`StepWorker`, entered", sentence))
    await enter()
    return rows


async def _nothing(_: Step) -> None:
    """Do a step."""


async def consumer_rows(place: Deployment, chosen: Chosen) -> list[Row]:
    (right,) = place.rights
    rows = []
    if chosen(Role.CONSUMER, right, START):
        async with place.without(right):
            sentence = await said(AuditStream(place.settings()).__aenter__(), NotAuthorized)
        rows.append(place.row(right, "`AuditStream`, entered", sentence))
    if not chosen(Role.CONSUMER, right, RUNNING):
        return rows
    async with (
        FlowClient(place.administrator()) as client,
        AuditStream(place.settings()) as events,
    ):
        await client.send(command(), timeout_s=GOES_ON_WITHIN_S)
        seen = [(await anext(events)).id]
        async with place.without(right):
            await client.send(command(), timeout_s=GOES_ON_WITHIN_S)

            async def go_on() -> None:
                async for event in events:
                    seen.append(event.id)

            sentence = await said(go_on(), NotAuthorized)
        rows.append(place.row(right, "`AuditStream`", sentence))
        position = events.position
    async with AuditStream(place.settings(), start=position, follow=False) as events:
        seen += [event.id async for event in events]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= 2
    return rows


def _operator_command(right: Right, flow_id: str, fixed: Path) -> tuple[str, ...]:
    """A command that needs the right."""
    topic = right.resource.name.rpartition(".")[2]
    if right.resource.kind is ResourceKind.GROUP:
        return ("doctor", "--role", "operator", "--json")
    match right.operation, topic:
        case Operation.WRITE, "control":
            return ("flow", "cancel", flow_id)
        case Operation.WRITE, "commands":
            return ("deadletters", "redrive", "0/0", "--value", str(fixed), "--again", "--yes")
        case Operation.READ, "commands" | "control":
            return ("verify",)
        case Operation.READ, "audit" | "outcomes" | "steps":
            return (topic,)
        case Operation.READ, "state":
            return ("flow", "list")
        case Operation.READ, "deadletters":
            return ("deadletters", "list")
        case Operation.DESCRIBE_CONFIGS, _:
            return ("topics", "check")
    raise AssertionError(f"no command is known that needs {right}")


def _words(arguments: Sequence[str]) -> str:
    """The names of the command."""
    return " ".join(arguments[: 2 if arguments[0] in ("flow", "deadletters", "topics") else 1])


async def operator_rows(
    place: Deployment, program: ForkedProgram, home: Path, chosen: Chosen
) -> list[Row]:
    """By commands of the program, which need a worker of the administrator's."""
    rows = []
    fixed = home / "fixed.json"
    fixed.write_text(json.dumps(command() | {"command_id": str(uuid4())}))
    async with FlowClient(place.administrator()) as client:
        await publish_rubbish(place.administrator())
        for right in place.rights:
            if not chosen(Role.OPERATOR, right, RUNNING):
                continue
            flow_id = (await client.send(command(), timeout_s=GOES_ON_WITHIN_S)).flow_id
            assert flow_id is not None
            arguments = _operator_command(right, flow_id, fixed)
            async with place.without(right):
                result = await called(program, place, *arguments)
            finds = arguments[0] == "doctor"  # looks on at what it may, and finds the rest
            assert result.code == (1 if finds else 3), result
            rows.append(
                place.row(right, f"`{_words(arguments)}`", result.out if finds else result.err)
            )
            again = await called(program, place, *arguments)
            assert again.code == 0, again
    return rows


async def called(program: ForkedProgram, place: Deployment, *arguments: str) -> Result:
    names = {name.removeprefix("TASKFLOW_"): value for name, value in place.environment().items()}
    began = time.monotonic()
    result = await asyncio.to_thread(program, *arguments, **names)
    assert "Traceback" not in result.err, result.err
    assert place.user.password not in result.out + result.err
    if result.code == 3:
        assert time.monotonic() - began < SAYS_WITHIN_S, result
    return result


async def views_rows(place: Deployment, home: Path, role: Role, chosen: Chosen) -> list[Row]:
    rows = []
    acting = {"VIEWS_OPERATOR_TOKEN": "a token of the operators"}
    for right in place.rights:
        if chosen(role, right, START):
            async with place.without(right):
                starting = ensure_startable(place.settings(), role)
                sentence = await said(starting, NotAuthorized)
            rows.append(place.row(right, "its start", sentence))
    async with FlowClient(place.administrator()) as client, ClientSession() as session:
        view = ViewProcess(
            *(str(role), home, place.kafka.scram, place.prefix, free_port(), session), partitions=1
        )
        view.choose(
            **{n.removeprefix("TASKFLOW_"): value for n, value in place.environment().items()},
            **(acting if role is Role.VIEWS_ACTING else {}),
        )
        await view.start()
        try:
            await view.until(lambda _: True, "/ready")
            # The group's members show by name and address, once they have joined again if they were
            # late.
            await view.until(
                lambda partitions: "at" in (partitions["items"][0]["worker"] or ""),
                "/v1/partitions",
            )
            sent = []
            for right in place.rights:
                if not chosen(role, right, RUNNING):
                    continue
                async with place.without(right):
                    began = time.monotonic()
                    sent.append((await client.send(command(), timeout_s=GOES_ON_WITHIN_S)).flow_id)
                    while True:
                        status, body = await view.get("/ready")
                        if status == 503 and body["denied"]:
                            break
                        assert time.monotonic() - began < SAYS_WITHIN_S, (body, view.output())
                        await asyncio.sleep(0.05)
                rows.append(place.row(right, "`/ready`", body["denied"]))
                await view.until(lambda _: True, "/ready")
            for flow_id in sent:
                await view.until(lambda _: True, f"/v1/flows/{flow_id}")
            assert place.user.password not in view.output()
        finally:
            await view.end()
    return rows


async def signals_rows(place: Deployment, home: Path, chosen: Chosen) -> list[Row]:
    """When it starts; with all of its rights it becomes ready, and delivers."""
    await create_signal_topics(place.administrator())
    rows = []
    for right in place.rights:
        if chosen(Role.SIGNALS, right, START):
            async with place.without(right):
                starting = ensure_rights(place.settings(), Role.SIGNALS)
                sentence = await said(starting, NotAuthorized)
            rows.append(place.row(right, "its start", sentence))
    service = SignalService(place.settings(state_dir=home / "signals"))
    stop = asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    try:
        async with (
            asyncio.timeout(GOES_ON_WITHIN_S),
            FlowClient(place.administrator()) as client,
            SignalClient(place.administrator()) as sender,
        ):
            flow = await client.create("deliver", running=True)
            await flow.wait_for("washed", "shirt")
            await sender.send("washed", "shirt")
            await flow.until("running")
    finally:
        stop.set()
        await running
    return rows


async def signaller_rows(place: Deployment, chosen: Chosen) -> list[Row]:
    await create_signal_topics(place.administrator())
    (right,) = place.rights
    rows = []
    if chosen(Role.SIGNALLER, right, START):
        async with place.without(right):
            sentence = await said(SignalClient(place.settings()).__aenter__(), NotAuthorized)
        rows.append(place.row(right, "`SignalClient`, entered", sentence))
    async with SignalClient(place.settings()) as sender:
        await sender.send("washed", "shirt")
    return rows


async def admin_rows(kafka: SecuredKafka, number: int, chosen: Chosen) -> list[Row]:
    if not chosen(Role.ADMIN, _rights(Role.ADMIN)[number], START):
        return []
    place = await deployment(kafka, Role.ADMIN)
    right = place.rights[number]
    partitions = 1
    if right.operation is Operation.ALTER:
        await create_topics(place.settings())
        partitions = 2
    settings = place.settings(steps_partitions=partitions)
    async with place.without(right):
        sentence = await said(create_topics(settings), NotAuthorized)
    await create_topics(settings)
    return [place.row(right, "`topics create`", sentence)]


async def matrix(
    kafka: SecuredKafka, program: ForkedProgram, home: Path, chosen: Chosen
) -> list[Row]:
    """The rows of all roles, in the order of the table of rights."""
    turns = asyncio.Semaphore(AT_ONCE)
    await asyncio.to_thread(program, "--version")  # its imports are no time that a command takes

    async def in_turn(work: Coroutine[Any, Any, list[Row]]) -> list[Row]:
        async with turns:
            return await work

    async def with_worker(
        role: Role, of: Callable[[Deployment], Coroutine[Any, Any, list[Row]]]
    ) -> list[Row]:
        place = await deployment(kafka, role)
        state_dir = home / f"{role}-worker"
        async with running_worker(place.administrator(state_dir=state_dir)):
            return await of(place)

    named = [str(right) for right in _rights(Role.WORKER)]
    works = [
        [
            with_worker(Role.PRODUCER, lambda place: producer_rows(place, chosen)),
            with_worker(Role.EXECUTOR, lambda place: executor_rows(place, chosen)),
            with_worker(Role.CONSUMER, lambda place: consumer_rows(place, chosen)),
            with_worker(Role.OPERATOR, lambda place: operator_rows(place, program, home, chosen)),
            with_worker(Role.VIEWS, lambda place: views_rows(place, home, Role.VIEWS, chosen)),
            with_worker(
                Role.VIEWS_ACTING,
                lambda place: views_rows(place, home, Role.VIEWS_ACTING, chosen),
            ),
        ],
        [
            in_turn(worker_starts(kafka, chosen)),
            *(in_turn(worker_runs(kafka, number, chosen)) for number in range(len(named))),
        ],
        [
            with_worker(Role.SIGNALS, lambda place: signals_rows(place, home, chosen)),
            with_worker(Role.SIGNALLER, lambda place: signaller_rows(place, chosen)),
        ],
        [in_turn(admin_rows(kafka, n, chosen)) for n in range(len(_rights(Role.ADMIN)))],
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [[group.create_task(work) for work in some] for some in works]
    rows = [[row for task in some for row in task.result()] for some in tasks]
    # Of a right, what shows in a worker's start stands before what shows while it runs.
    rows[1].sort(key=lambda row: named.index(row.without))
    return [row for some in rows for row in some]


def _rights(role: Role) -> tuple[Right, ...]:
    """As the documentation names them."""
    return rights(role, Topics(), "taskflow")


async def _write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with secured_kafka(home) as kafka:
            rows = await matrix(kafka, shared_program(), home, everything)
    document("rights", rights_table())
    document("matrix", as_table(rows))


if __name__ == "__main__":
    asyncio.run(_write())
