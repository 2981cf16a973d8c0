"""Where OAuth tokens come from, and when they are asked for again."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.kafka.access import oauth
from processor.adapters.kafka.access.oauth import TokenProvider, TokenUnavailable, claims
from processor.adapters.kafka.access.principal import principal, principal_of
from processor.settings import Settings
from tests.support.tokens import token


def settings(**chosen: Any) -> Settings:
    return Settings(security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER", **chosen)


def command(path: Path, script: str) -> Settings:
    """By a command that notes each of its runs in a file beside it."""
    path.write_text(f"#!/bin/sh\necho run >> '{path}.runs'\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return settings(sasl_oauth_token_command=f"'{path}'")


def runs(path: Path) -> int:
    return Path(f"{path}.runs").read_text().count("run")


async def refused(given: Settings) -> str:
    with pytest.raises(TokenUnavailable) as no:
        await TokenProvider(given).token()
    return str(no.value.args[0])


async def test_a_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    provider = TokenProvider(settings(sasl_oauth_token_file=file))

    file.write_text("one\n")
    assert await provider.token() == "one"
    file.write_text("two")
    assert await provider.token() == "two"


async def test_the_principal_is_the_subject_of_the_last_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    given = settings(sasl_oauth_token_file=file)
    provider = TokenProvider(given)
    options = {"security_protocol": "SASL_SSL", "sasl_oauth_token_provider": provider}
    assert principal(given) == "the principal of our OAuth token"
    assert principal_of(options) == "our principal"

    file.write_text(token("worker-7", 60))
    await provider.token()

    assert principal(given) == principal_of(options) == "User:worker-7"


async def test_a_command_runs_again_when_its_token_is_nearly_over(tmp_path: Path) -> None:
    path, printed = tmp_path / "fetch", token("worker", 100)
    given = command(path, f"echo '{printed}'")
    now_s = [claims(printed)["iat"] + 1]
    clients = [TokenProvider(given, clock=lambda: now_s[0]) for _ in range(3)]

    await clients[0].token()
    await asyncio.gather(*(client.token() for client in clients))
    assert runs(path) == 1  # for all clients of this process
    now_s[0] += 79
    await clients[0].token()
    assert runs(path) == 1
    now_s[0] += 3
    await clients[1].token()
    assert runs(path) == 2


async def test_an_opaque_token_serves_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "fetch"
    given = command(path, "echo opaque-1")
    now_s = [1_000.0]
    provider = TokenProvider(given, clock=lambda: now_s[0])

    assert await provider.token() == await provider.token() == "opaque-1"
    assert runs(path) == 1
    now_s[0] += oauth.OPAQUE_KEPT_S
    await provider.token()
    assert runs(path) == 2


async def test_a_command_that_fails_is_a_sentence_without_its_words(tmp_path: Path) -> None:
    failing = command(tmp_path / "fails", "echo hunter2 >&2; echo hunter2; exit 7")
    assert await refused(failing) == (
        "TASKFLOW_SASL_OAUTH_TOKEN_COMMAND gives no token: the command ended with exit code 7"
    )
    missing = settings(sasl_oauth_token_command="/nowhere/hunter2 --secret hunter3")
    sentence = await refused(missing)
    assert "no such file or directory" in sentence
    assert "hunter" not in sentence


async def test_a_command_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "COMMAND_TIMEOUT_S", 0.2)

    sentence = await refused(command(tmp_path / "hangs", "exec sleep 60"))

    assert "did not end within 0.2 s" in sentence


@pytest.mark.parametrize("content", ["two words", "a\nb", "é", "x\x01auth=y", '{"token": 1}'])
async def test_what_is_no_token_is_not_sent_and_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)

    sentence = await refused(settings(sasl_oauth_token_file=file))

    assert "no bearer token" in sentence
    assert content not in sentence


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.b.c", "a.IiI.c", "a.W10.c", "a." + "W1tb" * 9 + ".c"]
)
def test_what_is_no_jwt_says_nothing_of_itself(text: str) -> None:
    assert claims(text) == {}
