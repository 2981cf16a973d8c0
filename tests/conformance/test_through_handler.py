"""The contract by example: what each case sends, and what must come of it.

The cases name neither event ids nor offsets; everything else is compared.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from processor.contract import CommandKind
from tests.support.partition import Partition, Sent

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "schemas/vectors/conformance.jsonl")
    .read_text("utf-8")
    .splitlines()
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


def commands_of(case: Any) -> Any:
    return [Sent(sent["topic"], sent["at_ms"], sent["value"]) for sent in case["commands"]]


def check(case: Any, partition: Any, all_decided: Any) -> None:
    for (outcome, events, work), expected in zip(all_decided, case["expect"], strict=True):
        stated = {name: outcome.get(name) for name in expected if name not in ("events", "work")}
        stated["events"] = [
            {name: value for name, value in event.items() if name not in ("id", "source")}
            for event in events
        ]
        if work:
            ids = outcome["event_ids"]
            stated["work"] = [
                {name: value for name, value in item.items() if name != "event_id"}
                | {"event": ids.index(item["event_id"])}
                for item in work
            ]
        assert stated == expected
        if outcome["verdict"] != "duplicate":
            assert outcome["event_ids"] == [event["id"] for event in events]
    flow_id = case["commands"][0]["value"]["flow_id"]
    assert partition.flow(flow_id) == case["flow"]
    assert partition.steps_of(flow_id) == sorted(case["steps"], key=lambda step: step["run_id"])


@each_case
def test_one_command_after_the_other(case: Any) -> None:
    partition = Partition()
    all_decided = [decided for sent in commands_of(case) for decided in partition.send(sent)]
    check(case, partition, all_decided)


@each_case
def test_all_commands_in_one_batch(case: Any) -> None:
    partition = Partition()
    check(case, partition, partition.send(*commands_of(case)))


def test_every_kind_of_command_occurs_in_a_case() -> None:
    kinds = {sent["value"]["kind"] for case in CASES for sent in case["commands"]}
    assert kinds == set(CommandKind)
