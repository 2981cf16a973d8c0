"""JSON Schemas (2020-12) of the published messages, made from the models."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from processor.contract.commands import COMMANDS
from processor.contract.dead_letters import DeadLetterHeaders
from processor.contract.events import EVENTS
from processor.contract.flow import Flow, Wait
from processor.contract.outcomes import Outcome
from processor.contract.signals import SignalMessage
from processor.contract.state import Cursor, FlowSnapshot, StepSnapshot
from processor.contract.steps import STEPS, WorkItem

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

# File name → model, title, description; what the model says of itself does where there is none.
_PUBLISHED: Final[Mapping[str, tuple[type[BaseModel] | TypeAdapter[Any], str, str | None]]] = {
    "command": (
        COMMANDS,
        "Command",
        "What a producer or an operator asks for: one change to one flow. Null in an optional "
        "field equals absent. Beyond what a schema can say: at most 512 KiB and 64 levels, "
        "numbers within ±(2^53-1), integers without fraction or exponent.",
    ),
    "outcome": (Outcome, "Outcome", None),
    "flow-event": (
        EVENTS,
        "FlowEvent",
        "One fact that happened to a flow. Folding a flow's events from the first gives exactly "
        "its row and steps.",
    ),
    "flow": (Flow, "Flow", None),
    "flow-step": (STEPS, "Step", "A piece of work of a flow: managed by taskflow, or observed."),
    "flow-snapshot": (FlowSnapshot, "FlowSnapshot", None),
    "step-snapshot": (StepSnapshot, "StepSnapshot", "A step as it stands."),
    "work-item": (WorkItem, "WorkItem", None),
    "cursor": (Cursor, "Cursor", None),
    "dead-letter-headers": (DeadLetterHeaders, "DeadLetterHeaders", None),
    "signal": (
        SignalMessage,
        "Signal",
        "An event without a flow id, an extension outside of the contract. Beyond what a schema "
        "can say: at most 504 KiB, and a payload that a command may hold.",
    ),
}
# Where a wait stands in what is published: model → field. The models hold it as plain JSON.
_WAITS: Final = {"Flow": "wait_json", "WaitingPayload": "wait"}


def json_schemas() -> dict[str, Schema]:
    """Every published message's schema by its name."""
    return {name: _schema(name, *about) for name, about in _PUBLISHED.items()}


def _schema(
    name: str, model: type[BaseModel] | TypeAdapter[Any], title: str, description: str | None
) -> Schema:
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter[Any](model)
    made = adapter.json_schema()
    definitions: Schema = made.pop("$defs", {})
    made["title"] = title
    for owner in (made, *list(definitions.values())):
        _say_what_a_wait_is(owner, definitions)
    for each in (made, *definitions.values()):
        _tidy(each)
    schema: Schema = {
        "$schema": DIALECT,
        "$id": f"urn:taskflow:schema:1:{name}",
        "title": title,
        "description": _one_line(description or made.get("description", "")),
    }
    schema |= {key: value for key, value in made.items() if key not in schema}
    if model is DeadLetterHeaders:
        schema["additionalProperties"] = True  # the original headers stand beside these
    if definitions:
        schema["$defs"] = dict(sorted(definitions.items()))
    return schema


def _say_what_a_wait_is(owner: Schema, definitions: Schema) -> None:
    field = _WAITS.get(owner.get("title", ""))
    if field is None:
        return
    wait = TypeAdapter[Any](Wait).json_schema()
    definitions |= wait["$defs"]
    kinds = wait["oneOf"]
    owner["properties"][field] = (
        {"anyOf": [*kinds, {"type": "null"}], "description": "Non-null exactly while waiting."}
        if field == "wait_json"
        else {"oneOf": kinds}
    )


def _tidy(schema: Schema) -> None:
    """Removes what says nothing, and requires what has only one value."""
    schema.pop("discriminator", None)
    if "description" in schema:
        schema["description"] = _one_line(schema["description"])
    for name, field in schema.get("properties", {}).items():
        field.pop("title", None)
        field.pop("discriminator", None)
        if "description" in field:
            field["description"] = _one_line(field["description"])
        if field.get("default", ...) is None:
            del field["default"]
        if "const" in field:
            field.pop("default", None)
            schema["required"] = [*schema.get("required", []), name]
    if "required" in schema:
        schema["required"] = [n for n in schema["properties"] if n in schema["required"]]


def _one_line(text: str) -> str:
    return " ".join(text.split())
