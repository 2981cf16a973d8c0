"""The table of rights, and the forms in which operators give them."""

import itertools
import shlex

import pytest
import yaml

from processor.contract.rights import (
    ROLES,
    Operation,
    Resource,
    ResourceKind,
    Right,
    Role,
    rights,
)
from processor.contract.topics import Topics
from processor.ops.acls import by_resource, kafka_acls, strimzi_user
from processor.ops.yaml_text import to_yaml

TOPICS = Topics("shop's")
GROUP = "shop workers"
KINDS = {"topic": "--topic", "group": "--group", "transactionalId": "--transactional-id"}
Acl = tuple[str, str, bool, frozenset[str]]


@pytest.fixture(params=list(Role))
def needed(request: pytest.FixtureRequest) -> tuple[Right, ...]:
    return rights(request.param, TOPICS, GROUP)


def acls_of(needed: tuple[Right, ...]) -> set[Acl]:
    strimzi = {
        ResourceKind.TOPIC: "topic",
        ResourceKind.GROUP: "group",
        ResourceKind.TRANSACTIONAL_ID: "transactionalId",
    }
    return {
        (strimzi[resource.kind], resource.name, resource.prefixed, frozenset(operations))
        for resource, operations in by_resource(needed)
    }


def test_each_role_is_described() -> None:
    assert ROLES.keys() == set(Role)


def test_no_right_stands_twice_and_each_says_what_it_is_for(needed: tuple[Right, ...]) -> None:
    plain = [(right.operation, right.resource) for right in needed]
    assert len(set(plain)) == len(plain)
    assert all(right.purpose for right in needed)


def test_describe_is_not_asked_for_where_it_is_included(needed: tuple[Right, ...]) -> None:
    for _, operations in by_resource(needed):
        if {Operation.READ, Operation.WRITE, Operation.ALTER} & set(operations):
            assert Operation.DESCRIBE not in operations


def test_a_right_is_said_in_three_words() -> None:
    right = Right(Operation.WRITE, Resource(ResourceKind.TRANSACTIONAL_ID, "shop-", True), "")
    assert str(right) == "Write on transactional id shop-*"


def test_the_lines_for_kafka_acls_are_what_a_shell_takes(needed: tuple[Right, ...]) -> None:
    lines = kafka_acls(needed, "User:CN=worker, O=Shop", "kafka:9093")

    found = set()
    for line in lines:
        words = shlex.split(line)
        assert words[:6] == [
            *("kafka-acls.sh", "--bootstrap-server", "kafka:9093", "--add"),
            *("--allow-principal", "User:CN=worker, O=Shop"),
        ]
        operations = frozenset(
            value for flag, value in itertools.pairwise(words) if flag == "--operation"
        )
        ((kind, name),) = [
            (kind, words[words.index(flag) + 1]) for kind, flag in KINDS.items() if flag in words
        ]
        prefixed = words[-2:] == ["--resource-pattern-type", "prefixed"]
        found.add((kind, name, prefixed, operations))
    assert found == acls_of(needed)
    assert len(lines) == len(found)


def test_the_yaml_for_strimzi_says_the_same(needed: tuple[Right, ...]) -> None:
    user = yaml.safe_load(to_yaml(strimzi_user(needed, "User:shop-worker")))

    assert (user["apiVersion"], user["kind"]) == ("kafka.strimzi.io/v1", "KafkaUser")
    assert user["metadata"]["name"] == "shop-worker"
    assert user["spec"]["authentication"] == {"type": "scram-sha-512"}
    assert user["spec"]["authorization"]["type"] == "simple"
    assert acls_of(needed) == {
        (
            acl["resource"]["type"],
            acl["resource"]["name"],
            {"literal": False, "prefix": True}[acl["resource"]["patternType"]],
            frozenset(acl["operations"]),
        )
        for acl in user["spec"]["authorization"]["acls"]
    }


def test_who_comes_with_a_certificate_gets_one_from_strimzi() -> None:
    user = strimzi_user(rights(Role.CONSUMER, TOPICS, GROUP), "User:CN=billing")

    assert user["metadata"]["name"] == "billing"
    assert user["spec"]["authentication"] == {"type": "tls"}
