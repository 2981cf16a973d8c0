"""Complete a caller's command: ids, expiry, and the checks that the processor makes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from processor.client.errors import InvalidCommand
from processor.contract import Command, instant
from processor.contract.commands import CommandBase
from processor.engine.codec import Draft, Readable, decode
from processor.engine.encoding import encode


class Prepared(NamedTuple):
    """A command as it is written. `digest` is `command_digest` of its outcomes."""

    command: Command
    key: bytes
    value: bytes
    digest: str


def prepare(
    command: Command | Mapping[str, Any], *, now_ms: int, expires_after_ms: int | None
) -> Prepared:
    """Fills in `command_id` and `expires_at` where they are missing, and reads the result as the
    processor would. Raises InvalidCommand."""
    fields = as_mapping(command)
    if fields.get("command_id") is None:
        fields["command_id"] = str(uuid4())
    if fields.get("expires_at") is None and expires_after_ms is not None:
        fields["expires_at"] = instant(now_ms + expires_after_ms)
    flow_id = fields.get("flow_id")
    key = str(flow_id).encode(errors="replace")
    try:
        value = encode(fields)
    except TypeError as error:  # orjson says what, and never the value
        raise InvalidCommand(f"The command is not JSON: {error}.") from None
    if b"null" in value and has_nonfinite(fields):
        raise InvalidCommand("The command is not JSON: a number is NaN or infinite.")
    read = decode(Draft(key, value))
    if isinstance(read, Readable):
        return Prepared(read.command, key, value, read.digest.hex())
    errors = read.details.get("errors", ())
    # The errors name the fields; the problem would say the first of them once more.
    problem = f": {read.problem}" if read.problem and not errors else ""
    raise InvalidCommand(
        f"The processor would not take the command ({read.code}{problem}).", errors
    )


def as_mapping(command: Command | Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON each time, so that a command sent again equals itself: what was set, and
    nothing that a default may say otherwise tomorrow."""
    if isinstance(command, CommandBase):
        return {**command.model_dump(mode="json", exclude_unset=True), "kind": command.kind}
    return dict(command)


def has_nonfinite(value: Any) -> bool:
    """orjson writes NaN and the infinities as null."""
    level = [value]
    while level:
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            return True
        inside: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inside.extend(item.values())
            elif isinstance(item, list | tuple):
                inside.extend(item)
        level = inside
    return False
