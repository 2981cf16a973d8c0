"""Trim the published schemas of Kubernetes' resources to what `taskflow deploy` writes.

`python -m tests.support.trimmed_schemas NAME SOURCE LICENSE FILE...` writes the file NAME.json of
tests/unit/ops/deployment/published. FILEs are CustomResourceDefinitions in YAML, or the folder of a
version within the PyPI package kubernetes-validate.

Of each object only the properties remain that some manifest has: no other one is allowed by the
test, so a manifest with another property needs this once more, with the whole schema.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.deployments import every_kind

PUBLISHED = Path(__file__).parents[1] / "unit" / "ops" / "deployment" / "published"
KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum", "minLength", "maxLength")
KUBERNETES = {
    "apps/v1 StatefulSet": "statefulset-apps-v1.json",
    "v1 Service": "service-v1.json",
    "policy/v1 PodDisruptionBudget": "poddisruptionbudget-policy-v1.json",
    "networking.k8s.io/v1 NetworkPolicy": "networkpolicy-networking-v1.json",
}
Schema = dict[str, Any]


def trimmed(schema: Schema, samples: list[Any], definitions: Mapping[str, Schema]) -> Schema:
    """`schema` without what none of `samples` has, and without words."""
    if "$ref" in schema:
        return trimmed(definitions[schema["$ref"].rpartition("/")[2]], samples, definitions)
    kept = {key: schema[key] for key in KEPT if key in schema}
    if kept.get("required") == []:
        del kept["required"]
    for choice in ("oneOf", "anyOf"):
        # Of simple values; what objects must have together says nothing about their properties.
        if choice in schema and not any("required" in one for one in schema[choice]):
            kept[choice] = [trimmed(one, [], definitions) for one in schema[choice]]
    objects = [sample for sample in samples if isinstance(sample, Mapping)]
    if "properties" in schema and objects:
        kept["properties"] = {
            name: trimmed(
                inner, [sample[name] for sample in objects if name in sample], definitions
            )
            for name, inner in schema["properties"].items()
            if any(name in sample for sample in objects)
        }
        kept["additionalProperties"] = False
    elif isinstance(inner := schema.get("additionalProperties"), dict):
        values = [value for sample in objects for value in sample.values()]
        kept["additionalProperties"] = trimmed(inner, values, definitions)
    if "items" in schema:
        elements = [one for sample in samples if isinstance(sample, list) for one in sample]
        kept["items"] = trimmed(schema["items"], elements, definitions)
    return kept


def whole(path: Path) -> Iterator[tuple[str, Schema, Mapping[str, Schema]]]:
    """The schemas in a file or folder, with the definitions that they refer to."""
    if path.is_dir():
        definitions = json.loads((path / "_definitions.json").read_text("utf-8"))["$defs"]
        for kind, name in KUBERNETES.items():
            yield kind, json.loads((path / name).read_text("utf-8")), definitions
        return
    spec = yaml.safe_load(path.read_text("utf-8"))["spec"]
    for version in spec["versions"]:
        kind = f"{spec['group']}/{version['name']} {spec['names']['kind']}"
        yield kind, version["schema"]["openAPIV3Schema"], {}


def main(name: str, source: str, licence: str, *files: str) -> None:
    """Write one file of schemas."""
    written = [
        document
        for found in every_kind().values()
        for documents in found.values()
        for document in documents
    ]
    schemas = {}
    for path in map(Path, files):
        for kind, schema, definitions in whole(path):
            samples = [one for one in written if f"{one['apiVersion']} {one['kind']}" == kind]
            if samples:
                schemas[kind] = trimmed(schema, samples, definitions)
    document = {
        "source": source,
        "license": licence,
        "made": "by tests/support/trimmed_schemas.py: properties that no manifest has are left out",
        "schemas": schemas,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (PUBLISHED / f"{name}.json").write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
