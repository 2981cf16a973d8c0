"""Singular JSON paths (RFC 9535), and the differences between two values.

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

_NAME: Final = re.compile(r"[A-Za-z_\u0080-\U0010ffff][\w\u0080-\U0010ffff]*")
_SHORT: Final = re.compile(rf"\.({_NAME.pattern})")
_INDEX: Final = re.compile(r"\[\s*(-?(?:0|[1-9][0-9]{0,8}))\s*\]")
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
    path, end = parse_start(text)
    if end < len(text):
        raise ValueError(_not_understood(text[end:]))
    return path


def parse_start(text: str) -> tuple[Path, int]:
    """The longest path at the start of `text`, and where it ends. Raises ValueError if there is
    none, or if a name in quotes is not one."""
    steps: list[str | int] = []
    at = 1 if text.startswith("$") else 0
    if at == 0 and (found := _NAME.match(text)) is not None:
        steps.append(found[0])
        at = found.end()
    while True:
        if (found := _SHORT.match(text, at)) is not None:
            steps.append(found[1])
        elif (found := _INDEX.match(text, at)) is not None:
            steps.append(int(found[1]))
        elif (found := _QUOTED.match(text, at)) is not None:
            steps.append(unquoted(found[1]))
        else:
            break
        at = found.end()
    if at == 0:
        raise ValueError(_not_understood(text))
    return tuple(steps), at


def _not_understood(text: str) -> str:
    return f"{text!r} is not understood: a path is like $.state_json.items[0]['a name']"


def unquoted(quoted: str) -> str:
    """The text in single or double quotes, with the escapes of JSON. Raises ValueError."""
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
