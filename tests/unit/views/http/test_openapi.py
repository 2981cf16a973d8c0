from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.views.http import openapi
from processor.views.http.openapi import openapi_document
from processor.views.http.routes import ROUTES


def test_the_document_is_what_the_models_say() -> None:
    program = "python -m processor.views.http.openapi"
    assert openapi.HOME.read_text("utf-8") == openapi.text(), program


def test_a_stale_document_is_told_and_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "openapi.json"
    path.write_text("{}")
    assert openapi.main(["--check"], path) == 1
    assert path.read_text() == "{}"
    assert openapi.main([], path) == 0
    assert openapi.main(["--check"], path) == 0
    assert capsys.readouterr().out == "stale: openapi.json\nwrote: openapi.json\n"


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    import jsonschema  # late: it takes two seconds, in each process

    document = openapi_document()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in references(document):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def references(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/flows", "status"), ("/v1/steps", "status"), ("/v1/events", "kind")]
)
def test_a_list_may_name_all_that_there_are(path: str, name: str) -> None:
    parameters = openapi_document()["paths"][path]["get"]["parameters"]
    (schema,) = (p["schema"] for p in parameters if p["name"] == name)
    assert schema["maxItems"] == len(schema["items"]["enum"])


def test_all_parameters_are_described_with_their_bounds() -> None:
    document = openapi_document()
    flows = {p["name"]: p["schema"] for p in document["paths"]["/v1/flows"]["get"]["parameters"]}
    assert flows["limit"] == {"default": 50, "maximum": 200, "minimum": 1, "type": "integer"}
    assert flows["status"]["items"]["enum"][0] == "created"
    assert len(ROUTES) == sum(len(path) for path in document["paths"].values())
