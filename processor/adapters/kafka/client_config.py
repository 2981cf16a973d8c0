"""Build the options of aiokafka's clients from the settings; check that a broker answers."""

import hashlib
import os
import socket
import ssl
import time
from typing import Any

from aiokafka.conn import collect_hosts
from aiokafka.errors import KafkaError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential

from processor.adapters.kafka.access.oauth import StrictConnection, TokenProvider
from processor.adapters.kafka.errors import BrokerUnreachable, explain
from processor.settings import BadSetting, Settings

PATIENCE_S = 8.0
"""How long a broker may take to appear; a starting one, or one that is being replaced."""
_KNOCK_S = 3.0


class _Hidden(str):
    """A secret that aiokafka can use and no repr shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


def client_id(settings: Settings, role: str) -> str:
    """The same after a restart: `role`, and the instance or this host's state directory.

    The group orders members by it, so a worker gets back the partitions that its disk holds.
    """
    if settings.instance_id is not None:
        return f"{settings.topic_prefix}-{role}-{settings.instance_id}"
    home = hashlib.blake2b(os.fsencode(settings.state_dir.absolute()), digest_size=4)
    return f"{settings.topic_prefix}-{role}-{socket.gethostname()}-{home.hexdigest()}"


def connection_options(settings: Settings, role: str = "client") -> dict[str, Any]:
    """What every client of aiokafka takes: where, who, how. Its repr shows no secret.

    Raises BadSetting if a TLS file cannot be used.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": client_id(settings, role),
        "security_protocol": settings.security_protocol,
    }
    if settings.uses_ssl:
        options["ssl_context"] = _ssl_context(settings)
    if settings.uses_sasl:
        options["sasl_mechanism"] = settings.sasl_mechanism
    if settings.uses_oauth:
        options["sasl_oauth_token_provider"] = TokenProvider(settings)
    elif settings.uses_sasl:
        assert settings.sasl_password is not None
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = _Hidden(settings.sasl_password.get_secret_value())
    return options


def compression_type(settings: Settings) -> str | None:
    """As aiokafka's producers want it."""
    return None if settings.compression == "none" else settings.compression


async def ensure_reachable(settings: Settings, *, patience_s: float = PATIENCE_S) -> None:
    """Return as soon as one broker answers and lets us in; try for `patience_s` seconds.

    aiokafka itself only logs why it could not connect. Raises BrokerUnreachable, BadSetting, and
    AccessDenied at once.
    """
    options = connection_options(settings, "probe")
    addresses = options.pop("bootstrap_servers")
    began = time.monotonic()
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(
            lambda error: isinstance(error, BrokerUnreachable) and error.retriable
        ),
        stop=stop_after_delay(patience_s),
        wait=wait_exponential(multiplier=0.1, max=1.0),
        reraise=True,
    ):
        with attempt:
            left_s = max(patience_s - (time.monotonic() - began), 0.5)
            await _knock(settings, addresses, options, within_s=min(left_s, _KNOCK_S))


async def _knock(
    settings: Settings, addresses: str, options: dict[str, Any], *, within_s: float
) -> None:
    first: Exception | None = None
    for host, port, _ in collect_hosts(addresses, randomize=False):
        connection = StrictConnection(
            host, port, request_timeout_ms=int(within_s * 1000), **options
        )
        try:
            await connection.connect()
        except (KafkaError, OSError, TimeoutError) as error:
            connection.close()  # where there was no token, it is still open
            first = explain(error, settings, f"{host}:{port}") if first is None else first
        else:
            await connection.close()
            return
    raise first or BrokerUnreachable("There is no address in TASKFLOW_BOOTSTRAP_SERVERS.")


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_cafile)
    except OSError as error:
        raise _unusable("TASKFLOW_SSL_CAFILE", settings.ssl_cafile, error) from None
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile is not None:
        password = settings.ssl_password
        # An empty password rather than none: OpenSSL would ask for it on the terminal.
        secret = "" if password is None else password.get_secret_value()
        try:
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, secret)
        except OSError as error:
            raise _unusable(
                "TASKFLOW_SSL_CERTFILE", settings.ssl_certfile, error, settings.ssl_keyfile
            ) from None
    return context


def _unusable(name: str, path: object, error: OSError, key: object = None) -> BadSetting:
    why = "not PEM, or the key or its password is wrong" if key else "not PEM"
    if not isinstance(error, ssl.SSLError):
        why = (error.strerror or "unreadable").lower()
    with_key = f" (with the key {str(key)!r})" if key else ""
    return BadSetting(f"{name} is {str(path)!r}{with_key}, which cannot be used: {why}.")
