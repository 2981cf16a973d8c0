"""YAML as it is written means to its readers what it was made of."""

from typing import Any

import pytest
import yaml

from processor.ops.yaml_text import to_yaml


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"b": [1, "1", True, "true", None, "null", {}, [], ""]}},
        {"words": ["yes", "No", "on", "1e3", "0x10", "12:30", "2026-11-30", "-1", "~", "=", "<<"]},
        {
            "signs": [
                "a: b",
                "a #b",
                "- a",
                "*a",
                "&a",
                "!a",
                "%a",
                "@a",
                "'",
                '"',
                "\\",
                "é",
                "a\nb",
            ]
        },
        {"nested": [[1, [2, {"c": [3]}]], {"d": {"e": "f"}, "g": [{"h": 1}]}]},
        {"plain": ["/etc/taskflow/ca.crt", "taskflow.audit", "apps/v1", "a-b_c"]},
        {"taskflow/component": "worker", "8": 8, "y": "n"},
    ],
)
def test_it_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


def test_it_is_written_in_blocks_for_people() -> None:
    pods = {"spec": {"ports": [{"name": "http", "port": 8900}], "clusterIP": "None", "args": []}}
    assert to_yaml(pods) == (
        "spec:\n  ports:\n    - name: http\n      port: 8900\n  clusterIP: None\n  args: []\n"
    )
