"""Places in a JSON value, and what differs between two values, place by place.

A path is what RFC 9535 (JSONPath) calls a singular query: it names one place and no set of them.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

Path = tuple[str | int, ...]
"""From the root: names of an object's members, indices of an array's elements."""


class _Absent:
    """Nothing is there; null is something."""

    def __repr__(self) -> str:
        return "nothing"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = _Absent()
ROOT: Final[Path] = ()

_SHORT: Final = re.compile(r"\.([A-Za-z_\u0080-\U0010ffff][\w\u0080-\U0010ffff]*)")
_INDEX: Final = re.compile(r"\[\s*(-?(?:0|[1-9][0-9]*))\s*\]")
_QUOTED: Final = re.compile(r"""\[\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*\]""", re.DOTALL)
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Change(NamedTuple):
    """A place in which two values differ; ABSENT where there is no such place."""

    path: str
    before: Any
    after: Any

    def as_json(self, before: str = "before", after: str = "after") -> dict[str, Any]:
        """Without the side on which nothing is there."""
        sides = ((before, self.before), (after, self.after))
        return {"path": self.path, **{k: v for k, v in sides if v is not ABSENT}}


def parse(text: str) -> Path:
    """`$.state_json.items[0]['a name']` as a path; the leading `$` may be left out.

    Raises ValueError, whose text says where it stops being one.
    """
    rest = text.removeprefix("$") if text.startswith("$") else f".{text}"
    if not text.startswith("$") and text.startswith("["):
        rest = text
    at, steps = 0, []
    while at < len(rest):
        if (found := _SHORT.match(rest, at)) is not None:
            steps.append(found[1])
        elif (found := _INDEX.match(rest, at)) is not None:
            steps.append(int(found[1]))
        elif (found := _QUOTED.match(rest, at)) is not None:
            steps.append(_unquoted(found[1]))
        else:
            raise ValueError(
                f"{rest[at:]!r} is not understood: a path is like $.state_json.items[0]['a name']"
            )
        at = found.end()
    return tuple(steps)


def _unquoted(quoted: str) -> str:
    inner = quoted[1:-1]
    if quoted[0] == "'":  # as JSON has it
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(orjson.loads(f'"{inner}"'))
    except orjson.JSONDecodeError:
        raise ValueError(f"{quoted} is no name") from None


def written(path: Path) -> str:
    """A path as text, as short as can be."""
    parts = ["$"]
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN.fullmatch(step):
            parts.append(f".{step}")
        else:
            inner = orjson.dumps(step).decode()[1:-1].replace('\\"', '"').replace("'", "\\'")
            parts.append(f"['{inner}']")
    return "".join(parts)


def value_at(value: Any, path: Path) -> Any:
    """What stands at `path`; ABSENT if there is no such place. A negative index counts from the
    end."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(value, list) or not -len(value) <= step < len(value):
                return ABSENT
            value = value[step]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return ABSENT
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are written alike: 1 is not 1.0, nor is it true."""
    return next(changes(one, other), None) is None


def changes(before: Any, after: Any, path: Path = ROOT) -> Iterator[Change]:
    """Each innermost place in which the two differ; an object's members by name, whatever their
    order, an array's elements by index."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            yield from changes(before.get(name, ABSENT), after.get(name, ABSENT), (*path, name))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            yield from changes(
                before[index] if index < len(before) else ABSENT,
                after[index] if index < len(after) else ABSENT,
                (*path, index),
            )
    elif type(before) is not type(after) or before != after:
        yield Change(written(path), before, after)
