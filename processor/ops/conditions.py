"""Parse a condition on a flow: one comparison of a field with a value.

    condition = PATH OPERATOR VALUE | PATH | "!" PATH
    OPERATOR  = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    VALUE     = JSON | text in quotes | word

PATH is one of `flow_path`. `~` is "contains". A PATH alone must be there, with `!` before it must
not. A word has no spaces, quotes or signs of operators; anything else of the kind goes in quotes.
What is known of a field is checked: a status must be one, a time a time, a revision a number.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, get_args

import orjson
from pydantic import BaseModel

from processor.contract.flow import FlowStatus, Wait
from processor.contract.values import instant, parse_timestamp
from processor.ops.flow_path import parse_flow_path_start
from processor.ops.json_path import ABSENT, Path, unquoted, value_at, written

Doc = Mapping[str, Any]

OPERATORS: Final = ("=", "!=", "<", "<=", ">", ">=", "~")
_MEANT: Final = {
    **dict.fromkeys(("==", "===", ":="), "="),
    **dict.fromkeys(("!==", "<>", "=!", "!"), "!="),
    **{"=~": "~", "~=": "~", "~~": "~", "=<": "<=", "=>": ">="},
}
"""Operators of other languages."""
_SIGNS: Final = re.compile(r"[=!<>~&|:]+")
_WORD: Final = re.compile(r"[^\s\"'=!<>~&|()]+")
_IN_QUOTES: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

_TEXTS: Final = frozenset(
    {
        *("id", "controller_id", "goal", "owner_session_key", "requester_origin", "current_step"),
        *("topic", "correlation_id"),
    }
)
_TIMES: Final = frozenset({"created_at", "updated_at", "at", "timeout_at"})


class Condition(NamedTuple):
    """`by` is an operator, or empty: is there; or `!`: is not there. An absent value meets only
    `!` and `!=`."""

    path: Path
    by: str
    value: Any = None

    def holds(self, flow: Doc) -> bool:
        """Whether it is so of a flow as JSON."""
        found = value_at(flow, self.path)
        if self.by in ("", "!"):
            return (found is not ABSENT) is (self.by == "")
        if self.by in ("=", "!="):
            return _equal(found, self.value) is (self.by == "=")
        return found is not ABSENT and _compared(found, self.by, self.value)

    def __str__(self) -> str:
        """In full, as it is read again."""
        if self.by in ("", "!"):
            return f"{self.by}{written(self.path)}"
        return f"{written(self.path)} {self.by} {orjson.dumps(self.value).decode()}"


def parse_condition(text: str) -> Condition:
    """`state.label = invoice`, `goal ~ "week 7"`, `revision > 3`, `state.draft`, `!state.draft`.

    Raises ValueError, whose text says what is allowed.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("it is not UTF-8")
    text = text.strip()
    negated = text.startswith("!")
    text = text.removeprefix("!").lstrip()
    path, end = parse_flow_path_start(text)
    if not path:
        raise ValueError("$ is the whole flow; name a field, such as goal or state.label")
    rest = text[end:].strip()
    if not rest:
        return Condition(_within(path), "!" if negated else "")
    signs = _SIGNS.match(rest)
    by = signs[0] if signs else ""
    if by not in OPERATORS:
        raise ValueError(_no_operator(by, rest))
    if negated:
        raise ValueError(f"! is for a path alone; write {text[:end]} != … to compare")
    return Condition(path, by, _value(path, by, rest[len(by) :].strip()))


def _within(path: Path) -> Path:
    if len(path) == 1:
        raise ValueError(f"every flow has {path[0]}; compare it, as in {path[0]} = …")
    if path[0] not in ("state_json", "wait_json"):
        raise ValueError(f"nothing lies within {path[0]}")
    if path[0] == "wait_json" and path[1] not in _WAIT_FIELDS:
        _no_field_of_wait(path, "", None)
    return path


def _no_operator(by: str, rest: str) -> str:
    allowed = f"allowed are {' '.join(OPERATORS)}"
    if by in _MEANT:
        return f"{by} is not an operator; write {_MEANT[by]} ({allowed})"
    if by:
        return f"{by} is not an operator; {allowed}"
    return f"{rest!r} does not begin with an operator; {allowed}"


def _value(path: Path, by: str, text: str) -> Any:
    """The value that is compared with what stands at `path`. Raises ValueError."""
    if not text:
        raise ValueError('a value is missing; the empty text is ""')
    if path[0] not in ("state_json", "wait_json") and len(path) > 1:
        raise ValueError(f"nothing lies within {path[0]}")
    check = _about(path)
    value = _parsed(text, as_text=by == "~" or check is _text)
    return value if check is None else check(path, by, value)


def _parsed(text: str, *, as_text: bool) -> Any:
    if _IN_QUOTES.fullmatch(text):
        return unquoted(text)
    word = _WORD.fullmatch(text) is not None
    if not (as_text and word):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    if word:
        return text
    raise ValueError(
        f"{text!r} is not one value: a text with spaces or signs goes in quotes, and each "
        "condition in a --where of its own; all must hold"
    )


Check = Callable[[Path, str, Any], Any]


def _about(path: Path) -> Check | None:
    """What is known of a place; None: any JSON may stand there."""
    first, *inner = path
    if first == "status":
        return _status
    if first == "cancel_requested":
        return _flag
    if first == "revision":
        return _numeric
    if first == "wait_json":
        return _of_wait(inner)
    if first in _TIMES:
        return _time
    return _text if first in _TEXTS else None


def _of_wait(inner: list[str | int]) -> Check | None:
    if not inner or inner[0] not in _WAIT_FIELDS:
        return _no_field_of_wait if inner else None
    if inner == ["kind"]:
        return _wait_kind
    if inner[0] in _TIMES:
        return _time
    return _text if inner[0] in _TEXTS else None


def _no_field_of_wait(path: Path, _by: str, _value: Any) -> Any:
    raise ValueError(f"a wait has no field {path[1]!r}; it has {', '.join(sorted(_WAIT_FIELDS))}")


def _status(path: Path, by: str, value: Any) -> Any:
    return _one_of([status.value for status in FlowStatus], path, by, value)


def _wait_kind(path: Path, by: str, value: Any) -> Any:
    return _one_of(sorted(_WAIT_KINDS), path, by, value)


def _flag(path: Path, by: str, value: Any) -> Any:
    if by not in ("=", "!=") or not isinstance(value, bool):
        raise ValueError(f"{path[0]} is compared by = or != with true or false")
    return value


def _one_of(allowed: list[str], path: Path, by: str, value: Any) -> Any:
    if by not in ("=", "!=") or value not in allowed:
        raise ValueError(f"{written(path)} is compared by = or != with {', '.join(allowed)}")
    return value


def _numeric(path: Path, by: str, value: Any) -> Any:
    if by == "~" or isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{path[0]} is compared with a whole number, and not by ~")
    return value


def _time(path: Path, by: str, value: Any) -> Any:
    """As flows hold it; a day is its midnight in UTC."""
    text = f"{value}T00:00:00Z" if isinstance(value, str) and _DAY.fullmatch(value) else value
    try:
        if by != "~":
            return instant(parse_timestamp(text))
    except (ValueError, TypeError):
        pass
    raise ValueError(
        f"{written(path)} is compared with a time such as 2026-11-22T21:02:08Z or 2026-11-22, "
        "and not by ~"
    )


def _text(path: Path, _by: str, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"{written(path)} is a text, and {value!r} is not")
    return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _compared(found: Any, by: str, value: Any) -> bool:
    if by == "~":
        return isinstance(found, str) and value in found
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (found, value))
    if not numeric and not (isinstance(found, str) and isinstance(value, str)):
        return False
    less, more = found < value, found > value
    return bool({"<": less, ">": more, "<=": not more, ">=": not less}[by])


_WAITS: Final[tuple[type[BaseModel], ...]] = get_args(get_args(Wait)[0])
"""The models of the union that `Wait` annotates."""
_WAIT_FIELDS: Final = frozenset(name for wait in _WAITS for name in wait.model_fields)
_WAIT_KINDS: Final = frozenset(
    kind for wait in _WAITS for kind in get_args(wait.model_fields["kind"].annotation)
)
