"""The SQL function by which queries look at conditions on the fields of flows. Pure."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from processor.contract.values import instant
from processor.ops.conditions import parse_condition
from processor.ops.flow_path import FIELDS

MEETS: Final = "meets"

_PLACES: Final = {name: place for place, name in enumerate(FIELDS)}
"""FLOW_COLUMNS are in the order of a flow's fields."""
_READ: Final[Mapping[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("state_json", "wait_json"), orjson.loads),
    **dict.fromkeys(("created_at", "updated_at"), instant),
    "cancel_requested": bool,
}

_condition: Final = lru_cache(maxsize=256)(parse_condition)


def meets(text: str, *row: Any) -> bool:
    """Whether the flow in a row of FLOW_COLUMNS meets the condition that is written in `text`."""
    condition = _condition(text)
    field = str(condition.path[0])
    value = row[_PLACES[field]]
    return condition.holds({field: _READ[field](value) if field in _READ else value})
