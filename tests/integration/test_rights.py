"""Roles at a Kafka that allows only what an ACL says.

It has SASL_SSL with SCRAM, a CA of its own and KRaft's StandardAuthorizer.

`make test` takes away one right of each kind, `make soak` every one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.contract.rights import Role, rights
from processor.contract.topics import Topics
from tests.support.forked_program import ForkedProgram, forked_program
from tests.support.rights_matrix import (
    as_table,
    documented,
    everything,
    matrix,
    one_of_each,
    rights_table,
)
from tests.support.secured_kafka import SecuredKafka


@pytest.fixture(scope="module")
def program() -> Iterator[ForkedProgram]:
    with forked_program({}) as program:
        yield program


def test_the_documentation_has_the_table_of_rights():
    assert documented("rights") == rights_table()


def test_the_documented_matrix_has_every_right_of_every_role():
    rows = [line.split(" | ") for line in documented("matrix").splitlines()[2:]]
    found = {(role.strip("| "), without) for role, without, *_ in rows}
    assert found == {
        (role, str(right)) for role in Role for right in rights(role, Topics(), "taskflow")
    }


@pytest.mark.timeout(300)
async def test_without_a_right_it_says_which_and_loses_nothing(
    secured: SecuredKafka, program: ForkedProgram, tmp_path: Path, request: Any
):
    every = request.config.getoption("--all-rights")

    rows = await matrix(secured, program, tmp_path, everything if every else one_of_each)

    table = documented("matrix").splitlines()
    found = as_table(rows).splitlines()
    if every:
        assert found == table
    else:
        assert len(found) > 40
        assert [line for line in table if line in set(found)] == found
