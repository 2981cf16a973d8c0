"""Debezium's configuration on the page of the outbox names options that Debezium has, columns that
the table has, and the topic of commands."""

import json
import re
from pathlib import Path
from typing import Final

from processor.contract.topics import Topics
from processor.outbox.database import TABLE, statements

PAGE: Final = Path(__file__).parents[3] / "processor" / "docs" / "outbox.md"
ROUTER: Final = "transforms.outbox."
OPTIONS: Final = {
    *("table.op.invalid.behavior", "table.field.event.id", "table.field.event.key"),
    *("table.field.event.timestamp", "table.field.event.payload", "table.expand.json.payload"),
    *("table.fields.additional.placement", "table.field.event.schema.version"),
    *("route.by.field", "route.topic.regex", "route.topic.replacement"),
    "route.tombstone.on.empty.payload",
}
"""Of the router, by Debezium's page "Outbox Event Router", November 2026."""


def test_the_router_is_given_its_options_our_columns_and_our_topic() -> None:
    (block,) = re.findall(r"^```json\n(.+?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    config: dict[str, str] = json.loads(block)["config"]
    router = {
        name.removeprefix(ROUTER): value
        for name, value in config.items()
        if name.startswith(ROUTER) and name != f"{ROUTER}type"
    }
    assert router.keys() <= OPTIONS
    columns = set(re.findall(r"^    (\w+) ", statements(), re.M))
    named = {value for name, value in router.items() if ".field" in name}
    assert named == {"command_id", "flow_id", "command"}
    assert named <= columns
    assert router["route.topic.replacement"] == Topics().commands
    assert config["table.include.list"] == f"public.{TABLE}"
    assert config[f"{ROUTER}type"] == "io.debezium.transforms.outbox.EventRouter"
