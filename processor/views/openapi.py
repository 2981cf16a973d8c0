"""Generate openapi.json from routes and models: `python -m processor.views.openapi`.

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
from processor.views.models import Problem, Query
from processor.views.routes import ROUTES, Route

HOME: Final = Path(__file__).parent / "openapi.json"
_REF: Final = "#/components/schemas/{model}"
_FLOW_ID: Final[dict[str, Any]] = {
    "name": "flow_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": UUID_PATTERN},
}
_LAST_EVENT_ID: Final[dict[str, Any]] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The `id` of the last event that was dealt with: goes on behind it.",
    "schema": {"type": "string"},
}


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 of the views' HTTP API."""
    answers = {model for route in ROUTES for model in route.answers.values()}
    bodies = {route.body for route in ROUTES if route.body is not None}
    models = sorted(answers | bodies | {Problem}, key=lambda model: model.__name__)
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
            "description": "Only committed events are ever shown. Every answer says in `view` how "
            "far it is behind. What is not 2xx is `application/problem+json`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": made["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    _one_line(document)
    return document


def text() -> str:
    return json.dumps(openapi_document(), indent=1, ensure_ascii=False) + "\n"


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [_FLOW_ID] if "{flow_id}" in route.path else []
    if route.media_type == "text/event-stream":
        parameters.append(_LAST_EVENT_ID)
    if route.query is not None:
        parameters += _parameters(route.query)
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            **{str(s): _answer(s, m.__name__, route.media_type) for s, m in route.answers.items()},
            **{str(s): _answer(s, "Problem", "application/problem+json") for s in route.problems},
        },
    }
    if route.body is not None:
        schema = {"$ref": _REF.format(model=route.body.__name__)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
        operation["security"] = [{"token": []}]
    return operation


def _answer(status: int, model: str, media_type: str) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
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
    parser = argparse.ArgumentParser(prog="python -m processor.views.openapi", description=__doc__)
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
