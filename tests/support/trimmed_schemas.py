"""Trim the published schemas of Kubernetes' resources to what `taskflow deploy` writes.

`python -m tests.support.trimmed_schemas FOLDER VERSION` writes `kubernetes.json` of
tests/unit/ops/deployment/published. FOLDER is that of a version of Kubernetes within the PyPI
package kubernetes-validate, VERSION the package's.

Of each object only the properties remain that some manifest has: no other one is allowed by the
test, so a manifest with another property needs this once more, with the whole schema.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.deployments import every_kind

PUBLISHED = Path(__file__).parents[1] / "unit/ops/deployment/published/kubernetes.json"
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


def main(folder: str, version: str) -> None:
    """Write the file."""
    definitions = json.loads((Path(folder) / "_definitions.json").read_text("utf-8"))["$defs"]
    written = [
        document
        for found in every_kind().values()
        for documents in found.values()
        for document in documents
    ]
    schemas = {}
    for kind, name in KUBERNETES.items():
        samples = [one for one in written if f"{one['apiVersion']} {one['kind']}" == kind]
        whole = json.loads((Path(folder) / name).read_text("utf-8"))
        schemas[kind] = trimmed(whole, samples, definitions)
    document = {
        "source": f"Kubernetes {version}, in the PyPI package kubernetes-validate {version}",
        "license": "Apache-2.0",
        "made": "by tests/support/trimmed_schemas.py: properties that no manifest has are left out",
        "schemas": schemas,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    PUBLISHED.write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
