"""All manifests of a deployment, by the file that they stand in."""

from typing import Any

from processor.contract.rights import Role
from processor.ops.deployment.autoscaler import scaled_object
from processor.ops.deployment.operators import Operator
from processor.ops.deployment.plan import KubernetesDeployment
from processor.ops.deployment.policies import (
    disruption_budget,
    network_policy,
    service_monitor,
)
from processor.ops.deployment.strimzi import has_users, kafka_topics, kafka_users
from processor.ops.deployment.workloads import scaled, signals, views, workers
from processor.ops.yaml_text import to_yaml

Manifests = dict[str, list[dict[str, Any]]]


def manifests(deployment: KubernetesDeployment) -> Manifests:
    """Files in the order in which they are to be applied: topics and users, then workers, then
    views and signals."""
    roles = [Role.WORKER] + ([Role.VIEWS] if deployment.views else [])
    roles += [Role.SIGNALS] if deployment.signals else []
    found: Manifests = {}
    if Operator.STRIMZI in deployment.operators:
        found["topics.yaml"] = list(kafka_topics(deployment))
        if has_users(deployment):
            found["users.yaml"] = list(kafka_users(deployment, *roles))
    made_by = {Role.WORKER: workers, Role.VIEWS: views, Role.SIGNALS: signals}
    for role, made in made_by.items():
        if role not in roles:
            continue
        own = [*made(deployment), disruption_budget(deployment, role)]
        own.append(network_policy(deployment, role))
        if role is Role.WORKER and scaled(deployment):
            own += scaled_object(deployment)
        if Operator.PROMETHEUS in deployment.operators:
            own.append(service_monitor(deployment, role))
        found["workers.yaml" if role is Role.WORKER else f"{role}.yaml"] = own
    return found


def as_text(documents: list[dict[str, Any]]) -> str:
    """One file, which `kubectl apply -f` takes."""
    return "".join(f"---\n{to_yaml(document)}" for document in documents)
