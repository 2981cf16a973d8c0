"""Every manifest is what Kubernetes, Strimzi, KEDA and the Prometheus operator take.

Kubernetes' own schemas stand in `published/`, cut by tests/support/trimmed_schemas.py: a property
that they do not have is an error. Those of the operators' resources come from npm.
"""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from processor.ops.deployment.kubernetes import as_text
from tests.support.deployments import every_kind

Document = dict[str, Any]

KUBERNETES = json.loads((Path(__file__).parent / "published/kubernetes.json").read_text("utf-8"))
EVERY_KIND = every_kind()
NPM: Final = Path.home() / ".cache" / "taskflow" / "kubernetes-models"
PACKAGES: Final = (
    "@kubernetes-models/strimzi-kafka-operator@1.0.1",  # of Strimzi 1.0.0
    "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
)
SCRIPT = Path(__file__).parents[3] / "support" / "operators_schemas.mjs"

needs_schemas = pytest.mark.skipif(
    shutil.which("node") is None or not (NPM / "node_modules" / "@kubernetes-models").exists(),
    reason="Node, or the schemas of the operators' resources, are not here "
    f"(npm install --prefix {NPM} {' '.join(PACKAGES)})",
)


def kind_of(document: Document) -> str:
    return f"{document['apiVersion']} {document['kind']}"


def of_operators(document: Document) -> bool:
    return kind_of(document) not in KUBERNETES["schemas"]


@cache
def validator(kind: str) -> Any:
    from jsonschema import Draft202012Validator  # late: it takes two seconds, in each process

    whole = {**KUBERNETES["schemas"][kind], "$defs": KUBERNETES.get("$defs", {})}
    Draft202012Validator.check_schema(whole)
    return Draft202012Validator(whole)


def problems(document: Document) -> list[str]:
    found = validator(kind_of(document)).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def operators_problems(documents: Sequence[Document]) -> list[list[str]]:
    """Of each document; one start of Node for all."""
    ran = subprocess.run(
        ["node", str(SCRIPT)],
        cwd=NPM,
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[list[str]] = json.loads(ran.stdout)
    return found


def every_document() -> list[Document]:
    return [
        document
        for found in EVERY_KIND.values()
        for documents in found.values()
        for document in yaml.safe_load_all(as_text(documents))
    ]


def test_every_manifest_of_kubernetes_is_valid() -> None:
    seen = set()
    for document in every_document():
        if not of_operators(document):
            assert problems(document) == [], document["kind"]
            seen.add(kind_of(document))
    assert seen == KUBERNETES["schemas"].keys()


@needs_schemas
def test_every_manifest_of_an_operator_is_valid() -> None:
    documents = [one for one in every_document() if of_operators(one)]
    assert {one["kind"] for one in documents} == {
        *("KafkaTopic", "KafkaUser", "ScaledObject", "TriggerAuthentication", "ServiceMonitor")
    }
    for document, found in zip(documents, operators_problems(documents), strict=True):
        assert found == [], document["kind"]


def spoiled(file: str, kind: str, spoil: Callable[[Any], object]) -> Document:
    """The first such manifest, once `spoil` has changed its spec."""
    (document, *_) = [one for one in EVERY_KIND["scram"][file] if one["kind"] == kind]
    changed = copy.deepcopy(document)
    spoil(changed["spec"])
    return changed


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
    ],
)
def test_a_planted_mistake_is_found(
    file: str, kind: str, spoil: Callable[[Any], object], where: str
) -> None:
    (problem,) = problems(spoiled(file, kind, spoil))
    assert problem.startswith(where)


PLANTED: tuple[tuple[str, str, Callable[[Any], object], str], ...] = (
    ("workers.yaml", "ScaledObject", lambda s: s.pop("triggers"), "/spec required"),
    ("workers.yaml", "ServiceMonitor", lambda s: s.pop("selector"), "/spec required"),
    ("topics.yaml", "KafkaTopic", lambda s: s.update(partitions=0), "/spec/partitions"),
    (
        "users.yaml",
        "KafkaUser",
        lambda s: s["authorization"]["acls"][0].update(operations=["Reed"]),
        "/spec/authorization/acls/0/operations/0",
    ),
)


@needs_schemas
def test_a_planted_mistake_of_an_operators_resource_is_found() -> None:
    documents = [spoiled(file, kind, spoil) for file, kind, spoil, _ in PLANTED]
    for found, (_, kind, _, where) in zip(operators_problems(documents), PLANTED, strict=True):
        assert any(problem.startswith(where) for problem in found), (kind, found)
