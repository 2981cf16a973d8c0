"""All manifests of a deployment, by the file that they stand in."""

from typing import Any

from processor.ops.deployment.autoscaler import scaled_object
from processor.ops.deployment.operators import Operator
from processor.ops.deployment.plan import Component, KubernetesDeployment
from processor.ops.deployment.policies import (
    disruption_budget,
    network_policy,
    service_monitor,
)
from processor.ops.deployment.strimzi import has_users, kafka_topics, kafka_users
from processor.ops.deployment.workloads import outbox, scaled, signals, views, workers
from processor.ops.yaml_text import to_yaml

Manifests = dict[str, list[dict[str, Any]]]


def manifests(deployment: KubernetesDeployment) -> Manifests:
    """Files in the order in which they are to be applied: topics and users, then workers, then
    views, signals and the outbox's relays."""
    made_by = {
        Component.WORKER: (workers, deployment.workers),
        Component.VIEWS: (views, deployment.views),
        Component.SIGNALS: (signals, deployment.signals),
        Component.OUTBOX: (outbox, deployment.outbox),
    }
    wanted = [component for component, (_, count) in made_by.items() if count]
    found: Manifests = {}
    if Operator.STRIMZI in deployment.operators:
        found["topics.yaml"] = list(kafka_topics(deployment))
        if has_users(deployment):
            found["users.yaml"] = list(kafka_users(deployment, *wanted))
    for component in wanted:
        made, _ = made_by[component]
        own = [*made(deployment), disruption_budget(deployment, component)]
        own.append(network_policy(deployment, component))
        if component is Component.WORKER and scaled(deployment):
            own += scaled_object(deployment)
        if Operator.PROMETHEUS in deployment.operators:
            own.append(service_monitor(deployment, component))
        found["workers.yaml" if component is Component.WORKER else f"{component}.yaml"] = own
    return found


def as_text(documents: list[dict[str, Any]]) -> str:
    """One file, which `kubectl apply -f` takes."""
    return "".join(f"---\n{to_yaml(document)}" for document in documents)
