"""What the tests of one broker with ACLs share."""

from collections.abc import Iterator

import pytest

from tests.support.own_loop import on_a_loop_of_its_own
from tests.support.secured_kafka import SecuredKafka, secured_kafka


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """One for the session."""
    with on_a_loop_of_its_own(secured_kafka(tmp_path_factory.mktemp("kafka"))) as running:
        yield running
