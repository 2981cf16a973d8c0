"""Provide OAuth tokens for SASL OAUTHBEARER, from a file or a command that prints one."""

import asyncio
import base64
import binascii
import json
import re
import shlex
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from processor.settings import Settings, read_secret

COMMAND_TIMEOUT_S: Final = 10.0
OPAQUE_KEPT_S: Final = 30.0
"""For how long a token of a command serves that does not say when it expires."""
LEFT_SHARE: Final = 0.2
"""A command is run again once only this share of its token's life is left."""
TOKEN_MAX_BYTES: Final = 64 * 1024
_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, b64token


class _Kept(NamedTuple):
    token: str
    until_s: float


_last_tokens: Final[dict[str, _Kept]] = {}
"""By file or command: all clients of this process share what a command printed."""


class TokenUnavailable(KafkaConnectionError):  # type: ignore[misc]
    """There is no token to authenticate with; a later attempt may find one. The message says why
    and holds nothing of a token."""


class _StrictAuthenticator(OAuthAuthenticator):  # type: ignore[misc]
    """Reads the response to a token, which aiokafka 0.14 does not: a broker refuses one by a JSON
    object (RFC 7628), and closes the connection with the next request."""

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        if payload:
            try:
                status = json.loads(payload)["status"]
            except (ValueError, TypeError, LookupError):
                status = "refused"
            raise SaslAuthenticationFailed(str(status))
        step: tuple[bytes, bool] | None = await super().step(payload)
        return step


class StrictConnection(AIOKafkaConnection):  # type: ignore[misc]
    """A connection that shows whether our OAuth token was accepted."""

    def authenticator_oauth(self) -> OAuthAuthenticator:
        return _StrictAuthenticator(sasl_oauth_token_provider=self._sasl_oauth_token_provider)


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """The token of TASKFLOW_SASL_OAUTH_TOKEN_FILE or TASKFLOW_SASL_OAUTH_TOKEN_COMMAND.

    aiokafka asks for one with each connection, so a session that the broker ended for its token's
    expiry is followed by one with the next token. A file is read each time; a command is run again
    when its token nears its expiry.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._file = settings.sasl_oauth_token_file
        self._command = settings.sasl_oauth_token_command
        self._source = _source(settings)
        self._clock = clock
        self._running = asyncio.Lock()

    @property
    def subject(self) -> str | None:
        """The `sub` claim of the last token: the name of Kafka's principal unless a broker takes
        another claim. None if there is none."""
        return _subject(self._source)

    async def token(self) -> str:
        """Raises TokenUnavailable."""
        if self._command is not None:
            async with self._running:
                return await self._of_command()
        assert self._file is not None, "settings name a file or a command"
        try:
            token = _checked(await asyncio.to_thread(read_secret, self._file), "FILE")
        except ValueError as error:
            raise _unavailable("FILE", f"{str(self._file)!r} cannot be used: {error}") from None
        _last_tokens[self._source] = _Kept(token, 0.0)
        return token

    async def _of_command(self) -> str:
        kept = _last_tokens.get(self._source)
        if kept is None or self._clock() >= kept.until_s:
            token = _checked(await self._printed(), "COMMAND")
            kept = _last_tokens[self._source] = _Kept(token, self._serves_until_s(token))
        return kept.token

    async def _printed(self) -> str:
        """What the command prints. Its standard error is the operator's; it may hold secrets."""
        assert self._command is not None
        arguments = shlex.split(self._command.get_secret_value())
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            why = (error.strerror or "it cannot be run").lower()
            raise _unavailable("COMMAND", f"the command did not start: {why}") from None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                printed = b""
                while (some := await process.stdout.read(TOKEN_MAX_BYTES)) and (
                    len(printed) <= TOKEN_MAX_BYTES
                ):
                    printed += some
                code = await process.wait()
        except TimeoutError:
            why = f"the command did not end within {COMMAND_TIMEOUT_S:g} s"
            raise _unavailable("COMMAND", why) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code != 0:
            raise _unavailable("COMMAND", f"the command ended with exit code {code}")
        return printed.decode("ascii", "replace").strip()

    def _serves_until_s(self, token: str) -> float:
        now_s = self._clock()
        expires_s = claims(token).get("exp")
        if not isinstance(expires_s, int | float):
            return now_s + OPAQUE_KEPT_S
        return now_s + (expires_s - now_s) * (1 - LEFT_SHARE)


def subject_of(settings: Settings) -> str | None:
    """As `TokenProvider.subject`."""
    return _subject(_source(settings))


def _source(settings: Settings) -> str:
    command = settings.sasl_oauth_token_command
    return str(settings.sasl_oauth_token_file) if command is None else command.get_secret_value()


def _subject(source: str) -> str | None:
    kept = _last_tokens.get(source)
    subject = None if kept is None else claims(kept.token).get("sub")
    return subject if isinstance(subject, str) else None


def _checked(token: str, source: str) -> str:
    if _TOKEN.fullmatch(token) is None:
        raise _unavailable(source, "what it gives is no bearer token (RFC 6750)")
    return token


def claims(token: str) -> dict[str, Any]:
    """What a JWT says of itself, unverified; nothing of another kind of token."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _unavailable(source: str, why: str) -> TokenUnavailable:
    return TokenUnavailable(f"TASKFLOW_SASL_OAUTH_TOKEN_{source} gives no token: {why}")
