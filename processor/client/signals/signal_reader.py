"""Read and check the value of a signal, for senders and `taskflow signals`."""

from typing import Any, Final

import orjson
from pydantic import ValidationError

from processor.contract.signals import SIGNAL_MAX_BYTES, SignalMessage
from processor.engine.codec import Draft, Unreadable, decode
from processor.engine.decode_errors import bounded_to, describe_json_error, problems, sentence
from processor.engine.encoding import encode
from processor.errors import TaskflowError

_KNOWN: Final = frozenset(SignalMessage.model_fields)
_ANY_UUID: Final = "00000000-0000-0000-0000-000000000000"


class InvalidSignal(TaskflowError, ValueError):
    """The value is not a signal, or no flow could take its payload. The text gives the reason
    without the payload."""


def read_signal(value: bytes | None) -> SignalMessage:
    """Return the signal, whose payload is within the contract's limits of a command. Raises
    InvalidSignal."""
    if not value:
        raise InvalidSignal("The signal is empty.")
    if len(value) > SIGNAL_MAX_BYTES:
        raise InvalidSignal(f"The signal is larger than {SIGNAL_MAX_BYTES // 1024} KiB.")
    try:
        fields = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        fault = describe_json_error(value, error)
        raise InvalidSignal(f"The signal is no JSON: {fault}.") from None
    if not isinstance(fields, dict):
        raise InvalidSignal("The signal is no JSON object.")
    try:
        signal = SignalMessage.model_validate(bounded_to(_KNOWN, fields))
    except ValidationError as error:
        raise InvalidSignal(f"The signal is invalid: {sentence(problems(error))}.") from None
    command = resume_command(signal, flow_id=_ANY_UUID, command_id=_ANY_UUID, revision=0)
    read = decode(Draft(_ANY_UUID.encode(), encode(command)))
    if isinstance(read, Unreadable):
        raise InvalidSignal(f"No flow can take the payload: {read.problem or read.code}.")
    return signal


def resume_command(
    signal: SignalMessage, *, flow_id: str, command_id: str, revision: int
) -> dict[str, Any]:
    """The `resume_external` by which the signal ends a wait of a flow at `revision`."""
    command = {
        "kind": "resume_external",
        "command_id": command_id,
        "flow_id": flow_id,
        "issued_by": f"signal:{signal.id}",
        "expected_revision": revision,
        "topic": signal.topic,
        "correlation_id": signal.correlation_id,
    }
    return command if signal.payload is None else {**command, "payload": signal.payload}
