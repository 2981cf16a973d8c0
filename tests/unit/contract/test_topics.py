"""The seven topics, and what the broker must hold them to."""

from typing import Any

import pytest

from processor.contract import SPECS, Topics

DAY_MS = 86_400_000


def test_names_are_made_of_the_prefix() -> None:
    topics = Topics("acme")
    assert [name for name, _ in topics] == [
        "acme.commands",
        "acme.control",
        "acme.outcomes",
        "acme.audit",
        "acme.state",
        "acme.deadletters",
        "acme.steps",
    ]
    assert topics.dead_letters == "acme.deadletters"
    assert Topics().audit == "taskflow.audit"


def test_each_name_is_found_by_its_own_property() -> None:
    topics = Topics("acme")
    named = [topics.commands, topics.control, topics.outcomes, topics.audit, topics.state]
    assert [*named, topics.dead_letters, topics.steps] == [name for name, _ in topics]


@pytest.mark.parametrize(("factor", "insync"), [(1, None), (2, None), (3, "2"), (4, "3"), (5, "3")])
def test_most_replicas_must_have_what_is_acknowledged(factor: int, insync: str | None) -> None:
    """Of two, one may then be away, and what it lacks be lost with the other."""
    config = SPECS[0].replicated(factor)
    assert config.pop("min.insync.replicas", None) == insync
    assert config == SPECS[0].config


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_broker_stamps_every_record(spec: Any) -> None:
    assert spec.config["message.timestamp.type"] == "LogAppendTime"


@pytest.mark.parametrize(
    ("name", "policy", "retention_ms"),
    [
        ("commands", "delete", 30 * DAY_MS),
        ("control", "delete", 30 * DAY_MS),
        ("outcomes", "delete", 45 * DAY_MS),
        ("audit", "delete", -1),
        ("state", "compact", None),
        ("deadletters", "delete", 30 * DAY_MS),
        ("steps", "delete", 30 * DAY_MS),
    ],
)
def test_records_are_kept_as_long_as_promised(name: str, policy: str, retention_ms: Any) -> None:
    (spec,) = (spec for spec in SPECS if spec.name == name)
    assert spec.config["cleanup.policy"] == policy
    assert spec.config.get("retention.ms") == (retention_ms and str(retention_ms))
