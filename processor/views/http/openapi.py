"""Generate openapi.json from routes and models: `python -m processor.views.http.openapi`.

With `--check` it writes nothing, and exits 1 if the file is stale.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from processor.contract.values import UUID_PATTERN
from processor.views.http.parameters import Query
from processor.views.http.responses import Problem
from processor.views.http.routes import ROUTES, Route

HOME: Final = Path(__file__).parent / "openapi.json"
_REF: Final = "#/components/schemas/{model}"
_FLOW_ID: Final[dict[str, Any]] = {
    "name": "flow_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": UUID_PATTERN},
}
_PLACE: Final = re.compile(r"\{(partition|offset)\}")
_LAST_EVENT_ID: Final[dict[str, Any]] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The `id` of the last event that was dealt with: goes on behind it.",
    "schema": {"type": "string"},
}

_DESCRIPTION: Final = (
    "Only committed events are ever shown. Every answer says in `view` how far it is behind. What "
    "is not 2xx is `application/problem+json` (RFC 9457). "
    "Readers see flows whole: goals, states, the `prompt` of a wait, and its `correlation_id`, "
    "which is all that a `resume_external` needs. Where not everybody who reaches the address may "
    "know them, set TASKFLOW_VIEWS_READ_TOKEN. "
    "Requests must name a host that the worker answers for (localhost, the address that it listens "
    "at, TASKFLOW_HTTP_HOSTS), and pages of other sites may send none."
)


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 of the views' HTTP API."""
    responses = {model for route in ROUTES for model in route.responses.values()}
    bodies = {route.body for route in ROUTES if route.body is not None}
    models = sorted(responses | bodies | {Problem}, key=lambda model: model.__name__)
    _, made = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "taskflow views",
            "version": "1",
            "summary": "Flows, their history and statistics, as far as the audit is projected",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": made["$defs"],
            "securitySchemes": {
                "read": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "TASKFLOW_VIEWS_READ_TOKEN, where it is set.",
                },
                "write": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "TASKFLOW_VIEWS_TOKEN; without it no commands are taken.",
                },
                "operator": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "TASKFLOW_VIEWS_OPERATOR_TOKEN; without it there are no "
                    "actions. Neither of the other two stands for it.",
                },
            },
        },
    }
    _one_line(document)
    return document


def text() -> str:
    return json.dumps(openapi_document(), indent=1, ensure_ascii=False) + "\n"


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [_FLOW_ID] if "{flow_id}" in route.path else []
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
        for name in _PLACE.findall(route.path)
    ]
    if route.media_type == "text/event-stream":
        parameters.append(_LAST_EVENT_ID)
    if route.query is not None:
        parameters += _parameters(route.query)
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            **{
                str(status): _response(route, status, model.__name__, route.media_type)
                for status, model in route.responses.items()
            },
            **{
                str(status): _response(route, status, "Problem", "application/problem+json")
                for status in sorted(route.problems)
            },
        },
        "security": [{"read": []}, {}] if route.token == "read" else [{route.token: []}],
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        schema = {"$ref": _REF.format(model=route.body.__name__)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _response(route: Route, status: int, model: str, media_type: str) -> dict[str, Any]:
    return {
        "description": route.notes.get(status, HTTPStatus(status).phrase),
        "content": {media_type: {"schema": {"$ref": _REF.format(model=model)}}},
    }


def _parameters(query: type[Query]) -> list[dict[str, Any]]:
    schema = query.model_json_schema()
    definitions = schema.get("$defs", {})
    found = []
    for name, field in schema["properties"].items():
        parameter = {"name": name, "in": "query"}
        if "description" in field:
            parameter["description"] = field.pop("description")
        field.pop("title", None)
        if field.get("default", ...) in (None, []):
            del field["default"]
        field = _inlined(field, definitions)
        if len(kinds := [k for k in field.get("anyOf", ()) if k != {"type": "null"}]) == 1:
            field = {**{k: v for k, v in field.items() if k != "anyOf"}, **kinds[0]}
        if field.get("type") == "array":
            parameter |= {"style": "form", "explode": False}
        found.append({**parameter, "schema": field})
    return found


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            found: Any = definitions[value["$ref"].rsplit("/", 1)[-1]]
            return _inlined(found, definitions)
        return {key: _inlined(inner, definitions) for key, inner in value.items()}
    return [_inlined(inner, definitions) for inner in value] if isinstance(value, list) else value


def _one_line(value: Any) -> None:
    """Docstrings are wrapped for a screen, a document is not."""
    if isinstance(value, dict):
        if isinstance(value.get("description"), str):
            value["description"] = re.sub(r"\s+", " ", value["description"]).strip()
        for inner in value.values():
            _one_line(inner)
    elif isinstance(value, list):
        for inner in value:
            _one_line(inner)


def main(arguments: Sequence[str] | None = None, path: Path = HOME) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m processor.views.http.openapi", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    check: bool = parser.parse_args(arguments).check
    if path.exists() and path.read_text("utf-8") == text():
        return 0
    if check:
        sys.stdout.write(f"stale: {path.name}\n")
        return 1
    path.write_text(text(), "utf-8")
    sys.stdout.write(f"wrote: {path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
