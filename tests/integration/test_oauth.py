"""SASL OAUTHBEARER at a real broker, with tokens that end while the program runs."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.kafka.admin.topic_admin import create_topics, partition_counts
from processor.adapters.kafka.errors import AccessDenied
from processor.client import FlowClient
from processor.contract.rights import Role, rights
from processor.contract.topics import Topics
from processor.settings import Settings
from processor.worker.composition import run_worker
from tests.support.machine import patience, stretched
from tests.support.rights_deployment import command
from tests.support.secured_kafka import SecuredKafka

LIFE_S = stretched(3)


def oauth(secured: SecuredKafka, prefix: str, file: Path, **chosen: Any) -> Settings:
    return Settings(
        bootstrap_servers=secured.oauth,
        security_protocol="SASL_SSL",
        sasl_mechanism="OAUTHBEARER",
        sasl_oauth_token_file=file,
        ssl_cafile=secured.ca_file,
        topic_prefix=prefix,
        partitions=1,
        **chosen,
    )


@pytest.mark.timeout(120)
async def test_a_worker_outlives_its_tokens(
    secured: SecuredKafka, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker ends each connection with the token that it was opened with."""
    administrator = secured.administrator(topic_prefix=prefix, partitions=1)
    await create_topics(administrator)
    subject = f"oauth-{prefix}"
    secured.allow(f"User:{subject}", rights(Role.WORKER, Topics(prefix), prefix))
    file = tmp_path / "token"
    given: list[str] = []

    def renew() -> None:
        given.append(secured.issuer.token(subject, LIFE_S))
        new = tmp_path / "new token"
        new.write_text(given[-1])
        new.replace(file)  # the worker reads it in a thread, and never half of it

    async def keep_renewing() -> None:
        while True:
            renew()
            await asyncio.sleep(LIFE_S / 6)  # so that what is read is new on a busy machine, too

    renewing = asyncio.create_task(keep_renewing())
    await asyncio.sleep(0)
    settings = oauth(secured, prefix, file, http=None, state_dir=tmp_path / "state")
    stop, ready = asyncio.Event(), asyncio.Event()
    worker = asyncio.create_task(run_worker(settings, stop=stop, ready=ready))
    async with FlowClient(administrator) as client:
        await ready.wait()
        until = time.monotonic() + 2 * LIFE_S
        while time.monotonic() < until:
            assert (await client.send(command(), timeout_s=patience(30))).verdict == "accepted"
            await asyncio.sleep(0.3)
    stop.set()
    await worker
    renewing.cancel()
    assert len(given) >= 5
    assert not [one for one in given if one in caplog.text]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file or directory"),
        ("two words", "no bearer token"),
        ("opaque", "does not take our OAuth token (invalid_token)"),
        ("expired", "does not take our OAuth token (invalid_token)"),
    ],
)
async def test_a_token_that_is_not_taken_is_one_sentence_at_once(
    secured: SecuredKafka, prefix: str, tmp_path: Path, content: str | None, why: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        expired = content == "expired"
        file.write_text(secured.issuer.token("worker", -60) if expired else content)

    async with asyncio.timeout(patience(5)):
        with pytest.raises(AccessDenied) as no:
            await partition_counts(oauth(secured, prefix, file), [f"{prefix}.audit"])

    await asyncio.sleep(stretched(0.1))  # TLS closes; no call awaits that
    assert why in str(no.value)
    assert "TASKFLOW_SASL_OAUTH_TOKEN_FILE" in str(no.value)
    assert content is None or file.read_text() not in str(no.value)
