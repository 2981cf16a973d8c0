"""`taskflow send`: JSON lines in, commands out, and with --wait their outcomes."""

import asyncio
import json
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from processor.cli.common.output import console, plain, say, verdict_text, write_json
from processor.cli.common.runner import Refused, WrongUse
from processor.client import CommandNotSent, FlowClient, InvalidCommand, OutcomeTimeout, Receipt
from processor.contract.commands import Command
from processor.contract.outcomes import Outcome, Verdict
from processor.runtime import end_tasks
from processor.settings import Settings

IN_FLIGHT = 256
LINE_MAX_BYTES = 4 * 1024 * 1024

Result = Outcome | Receipt
Send = Callable[[Command], Awaitable[Result]]


async def send_lines(
    settings: Settings,
    path: Path | None,
    *,
    wait: bool,
    control: bool,
    timeout_s: float,
    people: bool = False,
) -> bool:
    """Whether anything was not sent, not answered or not accepted. `people`: print sentences."""
    # As it came: a line that is sent again must equal itself to be a duplicate.
    async with FlowClient(settings, expire=False) as client:

        async def one(command: Command) -> Result:
            call = client.send if wait else client.publish
            return await call(command, control=control, timeout_s=timeout_s)

        lines = _lines_of(path)
        try:
            return await _Sending(client, one, people=people).all(lines)
        finally:
            await lines.aclose()


class _Sending:
    """Lines become calls under way, and calls become lines, in the order of the input."""

    def __init__(self, client: FlowClient, send: Send, *, people: bool) -> None:
        self._people = people
        self._client = client
        self._send = send
        self._under_way: asyncio.Queue[tuple[int, asyncio.Task[Result]] | None] = asyncio.Queue(
            IN_FLIGHT
        )
        self._last_of_flow: dict[str, asyncio.Task[Result]] = {}
        self._sent = 0

    async def all(self, lines: AsyncIterator[bytes]) -> bool:
        """Raises WrongUse behind what came before the first line that is no command."""
        starting = asyncio.ensure_future(self._start(lines))
        reporting = asyncio.ensure_future(self._report())
        try:
            await asyncio.wait({starting, reporting}, return_when=asyncio.FIRST_EXCEPTION)
            if reporting.done():
                reporting.result()  # what it raises matters more: no reader of ours, or no broker
            bad = await starting
            failed = await reporting
        finally:
            await end_tasks(starting, reporting, *self._last_of_flow.values())
        if bad is not None:
            raise WrongUse(bad)
        return failed

    async def _start(self, lines: AsyncIterator[bytes]) -> str | None:
        """What is wrong with the first line that is no command."""
        index = 0
        try:
            async for line in lines:
                index += 1
                if line.strip():
                    command = self._client.prepare(_parsed(line))
                    await self._under_way.put((index, self._call(command)))
                    self._sent += 1
        except ValueError as error:  # InvalidCommand is one
            return f"Line {index}: {error} Nothing after it was sent; before it: {self._sent}."
        finally:
            await self._under_way.put(None)
        return None

    def _call(self, command: Command) -> asyncio.Task[Result]:
        flow_id, before = command.flow_id, self._last_of_flow.get(command.flow_id)

        async def in_turn() -> Result:
            if before is not None:
                await asyncio.wait([before])
            return await self._send(command)

        def forget(task: asyncio.Task[Result]) -> None:
            if self._last_of_flow.get(flow_id) is task:
                del self._last_of_flow[flow_id]
            if not task.cancelled():
                task.exception()  # retrieved: when one ends us, the others are not awaited

        task = self._last_of_flow[flow_id] = asyncio.ensure_future(in_turn())
        task.add_done_callback(forget)
        return task

    async def _report(self) -> bool:
        """Whether any of them failed."""
        failed = False
        while (item := await self._under_way.get()) is not None:
            index, task = item
            try:
                result = await task
            except (OutcomeTimeout, CommandNotSent) as error:
                say(f"Line {index}: {error}")
                failed = True
                continue
            failed = failed or (isinstance(result, Outcome) and not accepted(result))
            if self._people:
                console().print(_line(result), soft_wrap=True)
            elif isinstance(result, Outcome):
                write_json(result.model_dump(mode="json", exclude_none=False), flush=True)
            else:
                write_json(_receipt(result), flush=True)
        return failed


def accepted(outcome: Outcome) -> bool:
    """Whether the command is in force, now or since its first sending."""
    verdict = outcome.original if outcome.verdict is Verdict.DUPLICATE else outcome.verdict
    return verdict is Verdict.ACCEPTED


async def send_as_operator(
    settings: Settings, command: dict[str, Any], timeout_s: float
) -> Outcome:
    """Send one command to `control` and await its outcome. Raises Refused without an answer."""
    async with FlowClient(settings) as client:
        try:
            return await client.send(command, control=True, timeout_s=timeout_s)
        except InvalidCommand as error:
            raise WrongUse(str(error)) from error
        except OutcomeTimeout as error:
            raise Refused(f"{error} Is a worker running?") from error


def _line(result: Result) -> Text:
    """One line for people."""
    if isinstance(result, Receipt):
        place = f"{result.topic}/{result.partition}/{result.offset}"
        return plain(f"sent  {result.command.flow_id}  {result.command.kind}  {place}")
    said = f"{result.message}" if result.code else f"r{result.revision} {result.status}"
    code = f" {result.code}" if result.code else ""
    line = verdict_text(result.verdict).append_text(plain(code))
    return line.append_text(plain(f"  {result.flow_id}  {result.kind}  {said}"))


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "command_id": receipt.command_id,
        "flow_id": receipt.command.flow_id,
        "kind": receipt.command.kind,
        "topic": receipt.topic,
        "partition": receipt.partition,
        "offset": receipt.offset,
    }


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("It is not JSON.") from None
    if not isinstance(value, dict):
        raise ValueError("It is not a JSON object.")
    return value


async def _lines_of(path: Path | None) -> AsyncGenerator[bytes]:
    if path is not None or stat.S_ISREG(os.fstat(0).st_mode):
        with path.open("rb") if path is not None else os.fdopen(0, "rb", closefd=False) as file:
            for line in file:
                yield line
        return
    # A thread that reads would keep us from ending: a pipe is read by the loop.
    reader = asyncio.StreamReader(limit=LINE_MAX_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(0), "rb", buffering=0)
    )
    try:
        while line := await reader.readline():
            yield line
    finally:
        transport.close()
