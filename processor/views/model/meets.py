"""The SQL function by which queries look at conditions on the fields of flows. Pure."""

from functools import lru_cache
from typing import Any, Final

from processor.ops.conditions import parse_condition
from processor.views.model.rows import flow_of

MEETS: Final = "meets"

_condition: Final = lru_cache(maxsize=256)(parse_condition)


def meets(text: str, *row: Any) -> bool:
    """Whether the flow in a row of FLOW_COLUMNS meets the condition that is written in `text`."""
    return _condition(text).holds(vars(flow_of(row)))
