"""Every manifest is what Kubernetes, Strimzi, KEDA and the Prometheus operator take.

Their schemas stand in `published/`, each with where it is from; those of many properties are cut
by tests/support/trimmed_schemas.py.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from processor.ops.deployment.kubernetes import as_text
from tests.support.deployments import every_kind

Document = dict[str, Any]

PUBLISHED = Path(__file__).parent / "published"
EVERY_KIND = every_kind()


def validators() -> dict[str, jsonschema.Draft202012Validator]:
    """By `apiVersion kind`."""
    found = {}
    for path in PUBLISHED.glob("*.json"):
        document = json.loads(path.read_text("utf-8"))
        assert document["license"] == "Apache-2.0"
        assert document["source"]
        for kind, schema in document["schemas"].items():
            whole = {**schema, "$defs": document.get("$defs", {})}
            jsonschema.Draft202012Validator.check_schema(whole)
            found[kind] = jsonschema.Draft202012Validator(whole)
    return found


VALIDATORS = validators()


def problems(document: Document) -> list[str]:
    validator = VALIDATORS[f"{document['apiVersion']} {document['kind']}"]
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("access", EVERY_KIND)
def test_every_manifest_is_valid(access: str) -> None:
    for documents in EVERY_KIND[access].values():
        for document in yaml.safe_load_all(as_text(documents)):
            assert problems(document) == [], document["kind"]


def test_each_schema_is_of_something_that_is_written() -> None:
    written = {
        f"{document['apiVersion']} {document['kind']}"
        for found in EVERY_KIND.values()
        for documents in found.values()
        for document in documents
    }
    assert written == VALIDATORS.keys()


def planted(file: str, kind: str, spoil: Callable[[Any], None]) -> list[str]:
    """What is wrong with the first such manifest, once `spoil` has changed its spec."""
    (document, *_) = [one for one in EVERY_KIND["scram"][file] if one["kind"] == kind]
    spoiled = copy.deepcopy(document)
    spoil(spoiled["spec"])
    return problems(spoiled)


def pod(spec: Any) -> Any:
    return spec["template"]["spec"]


@pytest.mark.parametrize(
    ("file", "kind", "spoil", "where"),
    [
        ("views.yaml", "StatefulSet", lambda s: s.update(replicas="1"), "$.spec.replicas"),
        ("views.yaml", "StatefulSet", lambda s: s.pop("selector"), "$.spec"),
        ("views.yaml", "StatefulSet", lambda s: pod(s).update(graceSeconds=1), "$.spec.template"),
        (
            "workers.yaml",
            "StatefulSet",
            lambda s: pod(s)["containers"][0]["readinessProbe"]["httpGet"].pop("port"),
            "$.spec.template.spec.containers[0].readinessProbe.httpGet",
        ),
        ("workers.yaml", "Service", lambda s: s["ports"][0].update(port="http"), "$.spec.ports"),
        ("workers.yaml", "NetworkPolicy", lambda s: s.update(podSelector=[]), "$.spec.podSelector"),
        ("workers.yaml", "PodDisruptionBudget", lambda s: s.update(max=1), "$.spec"),
        ("workers.yaml", "ScaledObject", lambda s: s.pop("triggers"), "$.spec"),
        ("workers.yaml", "ServiceMonitor", lambda s: s.pop("selector"), "$.spec"),
        ("topics.yaml", "KafkaTopic", lambda s: s.update(partitions=0), "$.spec.partitions"),
        (
            "users.yaml",
            "KafkaUser",
            lambda s: s["authorization"]["acls"][0].update(operations=["Reed"]),
            "$.spec.authorization.acls[0].operations[0]",
        ),
    ],
)
def test_a_planted_mistake_is_found(
    file: str, kind: str, spoil: Callable[[Any], None], where: str
) -> None:
    (problem,) = planted(file, kind, spoil)
    assert problem.startswith(where)
