"""What the tests of one broker with ACLs share."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.secured_kafka import SecuredKafka, secured_kafka


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """One for the session, on a loop in a thread of its own as `broker` is."""
    context = secured_kafka(tmp_path_factory.mktemp("kafka"))
    with ThreadPoolExecutor(max_workers=1) as thread, asyncio.Runner() as runner:
        running = thread.submit(runner.run, context.__aenter__()).result()
        yield running
        thread.submit(runner.run, context.__aexit__(None, None, None)).result()
        thread.submit(runner.close).result()
