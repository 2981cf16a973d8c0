"""Word what makes a record no command: the fault, where it is, and what is wanted.

None repeats a value; names of fields are the sender's own. All are found in time that does not
depend on how many faults there are.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from processor.contract.commands import MODELS
from processor.contract.flow import Wait
from processor.contract.values import DEPTH_MAX, ERRORS_MAX, INTEGER_MAX, UUID_PATTERN

TOO_DEEP: Final = f"it is nested deeper than {DEPTH_MAX}"
OUT_OF_RANGE: Final = f"a number is out of range: at most {INTEGER_MAX:,} either way"
A_UUID: Final = "must be a UUID in lower case"
HOW_TO_MAKE_A_FLOW_ID: Final = (
    f"{A_UUID}; of a business key, make one with UUIDv5 (Python: uuid.uuid5(namespace, key))"
)
FIELDS_MAX: Final = 64
"""More than any command has; of more, those that are read or named are enough."""
_NAME_SHOWN: Final = 64
_KIND_COMPARED: Final = 64

_BY_MESSAGE: Final = {
    "number is infinity when parsed as double": OUT_OF_RANGE,
    "depth limit exceeded": TOO_DEEP,
    "no low surrogate in string": "a lone surrogate",
    "invalid high surrogate in string": "a lone surrogate",
    "invalid low surrogate in string": "a lone surrogate",
}
"""What orjson says of JSON that the contract does not take; a test guards the words."""
_OUT_OF_MEMORY: Final = "failed to allocate memory"
"""What it says of some values that open more brackets than it has room for."""
_VALUE_ERROR: Final = "Value error, "
_MEMBER: Final = re.compile(r"<[A-Za-z]+\.[A-Z_]+: ('[a-z_]+')>")
"""How pydantic writes a member of an enum that a literal names; senders know only its value."""
_MODELS: Final = (*MODELS.values(), *get_args(get_args(Wait)[0]))
_KNOWN: Final = frozenset(name for model in _MODELS for name in model.model_fields)


def describe_json_error(value: bytes, error: orjson.JSONDecodeError) -> str:
    """Say why `value` is not JSON that a command may be, and at which line and column."""
    if value.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark"
    try:
        value.decode()
    except UnicodeDecodeError as wrong:
        return f"it is not UTF-8 at byte {wrong.start}"
    what = json_fault(error) or "it is not JSON"
    return f"{what}, at line {error.lineno}, column {error.colno}"


def json_fault(error: orjson.JSONDecodeError) -> str | None:
    """Say which rule of the contract a JSON text breaks that orjson does not read; None if it is
    no JSON at all."""
    if error.msg == _OUT_OF_MEMORY and error.pos > DEPTH_MAX:
        return TOO_DEEP
    return _BY_MESSAGE.get(error.msg)


def bounded(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """Cut off the unknown fields of a command, and of its wait, that no list of errors has room
    for. An object of 100,000 fields would take as many errors, each an object of its own."""
    wait = mapping.get("wait")
    if type(wait) is dict and len(wait) > FIELDS_MAX:
        mapping = {**mapping, "wait": bounded_to(_KNOWN, wait)}
    return bounded_to(_KNOWN, mapping)


def bounded_to(known: frozenset[str], mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """Cut off the fields of an object that are not among the `known` ones of its model, and that
    no list of errors has room for."""
    if len(mapping) <= FIELDS_MAX:
        return mapping
    unknown = [name for name in mapping if name not in known][:ERRORS_MAX]
    kept = known.union(unknown)
    return {name: value for name, value in mapping.items() if name in kept}


def problems(error: ValidationError) -> list[dict[str, str]]:
    """Make `details.errors` of an `invalid_command` outcome: fields and problems, no values."""
    found = []
    for item in error.errors(include_url=False, include_input=False)[:ERRORS_MAX]:
        location = [str(part) for part in item["loc"]]
        if location and location[0] in MODELS:
            location = location[1:]
        if len(location) > 1 and location[0] == "wait":
            location = ["wait", *location[2:]]  # between them stands the wait's kind
        if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            location = [*location, "kind"]
        found.append({"field": ".".join(location)[:256], "problem": _problem(item, location)})
    return found


def _problem(item: ErrorDetails, location: Sequence[str]) -> str:
    context = item.get("ctx", {})
    match item["type"]:
        case "union_tag_invalid":
            kinds = re.findall(r"'([a-z_]+)'", context["expected_tags"])
            nearest = ", ".join(nearest_first(context["tag"], kinds))
            return f"Unknown kind; the kinds, nearest first: {nearest}"
        case "union_tag_not_found":
            return "Field required"
        case "string_pattern_mismatch" if context["pattern"] == UUID_PATTERN:
            return HOW_TO_MAKE_A_FLOW_ID if location[-1] == "flow_id" else A_UUID
    return _MEMBER.sub(r"\1", item["msg"].removeprefix(_VALUE_ERROR))


def nearest_first(given: str, names: Sequence[str]) -> list[str]:
    """Sort `names` by how many pairs of letters each shares with `given` (Dice's coefficient)."""
    wanted = _pairs(given[:_KIND_COMPARED].lower())

    def distance(name: str) -> tuple[float, str]:
        pairs = _pairs(name)
        return -2 * len(wanted & pairs) / (len(wanted) + len(pairs) or 1), name

    return sorted(names, key=distance)


def _pairs(text: str) -> set[str]:
    return {text[at : at + 2] for at in range(len(text) - 1)}


def sentence(errors: Sequence[Mapping[str, str]]) -> str:
    """All of `details.errors` in a row."""
    return "; ".join(f"{_name(one['field'])}: {one['problem']}" for one in errors)


def _name(field: str) -> str:
    return field if len(field) <= _NAME_SHOWN else f"{field[:_NAME_SHOWN]}…"
