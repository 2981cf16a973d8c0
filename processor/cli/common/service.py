"""Run a service, with its health server."""

import asyncio
from typing import Any, Final, Protocol

from pydantic import SecretStr

from processor.adapters.kafka.access.authorization import ensure_rights
from processor.cli.common.runner import WrongUse
from processor.contract.rights import Role
from processor.runtime import unless_stopped
from processor.settings import Address, Settings
from processor.telemetry.exposition import Exposed
from processor.telemetry.health_server import serve

FROM_SETTING: Final = "-"
"""An option's value that stands for the setting."""


class Service(Protocol):
    """A sink, an outbox's relay, or the signals service."""

    @property
    def metrics(self) -> Exposed: ...
    def report(self) -> dict[str, Any]: ...
    async def run(self, stop: asyncio.Event) -> None: ...


def database_dsn(setting: SecretStr | None, given: str, variable: str, whose: str) -> str:
    """The address of an option, or else of the setting. Raises WrongUse if there is none."""
    if given != FROM_SETTING:
        return given
    if setting is None:
        raise WrongUse(
            f"{variable} is missing: set it to the PostgreSQL {whose}, such as "
            f"postgresql://user:password@host:5432/database, or set {variable}_FILE to a file "
            "that holds it."
        )
    return setting.get_secret_value()


async def run_service(
    service: Service,
    settings: Settings,
    stop: asyncio.Event,
    *,
    role: Role,
    http: Address | None,
    variable: str,
) -> None:
    """Run `service` until `stop` is set or it ends, and serve its health at `http`.

    `variable`: the setting of `http`, for messages. `role`: the service's role in Kafka. Raises the
    errors of the service, NotAuthorized, AddressInUse.
    """

    async def started() -> bool:
        await ensure_rights(settings, role)
        return True

    if not await unless_stopped(started(), stop):
        return

    async def report() -> dict[str, Any]:
        return service.report()

    async def scraped() -> bytes:
        return service.metrics.text()

    async with serve(
        http,
        report=report,
        metrics=scraped,
        hosts=settings.http_hosts,
        otherwise=f"{variable} to another address, or to off",
    ):
        await service.run(stop)
