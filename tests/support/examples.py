"""What READMEs show: the code blocks that are marked to be tried, and a way to try them."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.support.machine import patience

_BLOCK = r"^<!-- {mark}: ([\w. -]+) -->\n+```{language}\n(.*?)^```$"
TIMEOUT_S = patience(150)


def examples(text: str, *, mark: str = "runs", language: str = "python") -> dict[str, str]:
    """The blocks under `<!-- mark: name -->`, by name."""
    pattern = _BLOCK.format(mark=re.escape(mark), language=language)
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found), "two examples have the same name"
    assert len(found) == text.count(f"<!-- {mark}:"), (
        f"a mark is not right before a {language} block"
    )
    return dict(found)


@asynccontextmanager
async def started(
    command: Sequence[str], *, cwd: Path, environ: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of its own; it does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def shown(command: Sequence[str], *, cwd: Path, environ: Mapping[str, str]) -> str:
    """What a program that ends by itself writes, once it ended well."""
    async with started(command, cwd=cwd, environ=environ) as process:
        out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        print(f"--- {command[-1][:40]}\n{out.decode()}{err.decode()}")
        assert process.returncode == 0, err.decode()
        return out.decode()


async def spoken(
    command: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    until: Callable[[list[str]], bool],
) -> list[str]:
    """The lines of a program that never ends, as soon as they are what is waited for."""
    lines: list[str] = []
    async with started(command, cwd=cwd, environ=environ) as process:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not until(lines):
                    line = await process.stdout.readline()
                    assert line, f"it ended after {lines}"
                    lines.append(line.decode().rstrip("\n"))
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                rest = await asyncio.wait_for(process.communicate(), patience(10))
                print(f"--- {command}\n{chr(10).join(lines)}\n{rest[1].decode()[-3000:]}")
    return lines


async def go_modules(home: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Go finds what this machine has of modules, and nothing from
    outside; skips where it has no franz-go."""
    cache = (await shown(("go", "env", "GOMODCACHE"), cwd=home, environ=environ)).strip()
    if not (Path(cache) / "cache/download/github.com/twmb/franz-go").exists():
        pytest.skip(
            "franz-go is not in Go's module cache: go mod download github.com/twmb/franz-go"
        )
    return {"GOPROXY": f"file://{cache}/cache/download", "GOSUMDB": "off"}


async def go_program(home: Path, source: str, environ: Mapping[str, str]) -> Path:
    """Compile the Go file `source` in `home`, vetted and formatted; returns the program."""
    inside = {**environ, **await go_modules(home, environ)}
    for command in (
        ("go", "mod", "init", "example"),
        ("go", "get", "github.com/twmb/franz-go/pkg/kgo"),
        ("go", "vet", "."),
        ("go", "build", "-o", "example", "."),
    ):
        await shown(command, cwd=home, environ=inside)
    assert not await shown(("gofmt", "-l", source), cwd=home, environ=inside)
    return home / "example"
