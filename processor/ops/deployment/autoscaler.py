"""The number of workers by lag: a KEDA ScaledObject on Kafka's own figures."""

from collections.abc import Mapping
from typing import Any, Final

from processor.ops.deployment.plan import Component, KubernetesDeployment
from processor.settings import Settings

LAG_OF_A_PROCESS: Final = 15_000
"""Commands that one process decides in about a second (docs/figures.md)."""
KAFKA_VERSION: Final = "2.8.0"
"""The protocol that KEDA speaks: its own default is older than Kafka 4 knows."""
CALM_S: Final = 600
"""No worker is taken away before: partitions that move wait for their new worker."""

_SASL: Final[Mapping[str, str]] = {
    "PLAIN": "plaintext",
    "SCRAM-SHA-256": "scram_sha256",
    "SCRAM-SHA-512": "scram_sha512",
}


def scaled_object(deployment: KubernetesDeployment) -> list[dict[str, Any]]:
    """From `workers` to as many as have a partition each, by the lag on `commands` and `control`;
    and how KEDA proves to Kafka who it is, if it has to: as a worker."""
    settings = deployment.settings
    name = deployment.named(Component.WORKER)
    secrets = _secrets(deployment)
    reference = {"authenticationRef": {"name": name}} if secrets else {}
    triggers = [
        {"type": "kafka", "metadata": _trigger(deployment, topic), **reference}
        for topic in (deployment.topics.commands, deployment.topics.control)
    ]
    scaled = deployment.resource(
        "keda.sh/v1alpha1 ScaledObject",
        name,
        Component.WORKER,
        {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name},
            "minReplicaCount": deployment.workers,
            "maxReplicaCount": deployment.workers_max,
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": CALM_S}}
                }
            },
            "triggers": triggers,
        },
    )
    if not secrets:
        return [scaled]
    authentication: dict[str, Any] = {"secretTargetRef": secrets}
    if settings.uses_sasl:
        authentication["env"] = [
            {
                "parameter": "username",
                "name": "TASKFLOW_SASL_USERNAME",
                "containerName": str(Component.WORKER),
            }
        ]
    return [
        deployment.resource(
            "keda.sh/v1alpha1 TriggerAuthentication", name, Component.WORKER, authentication
        ),
        scaled,
    ]


def _trigger(deployment: KubernetesDeployment, topic: str) -> dict[str, str]:
    settings: Settings = deployment.settings
    found = {
        "bootstrapServers": settings.bootstrap_servers,
        "consumerGroup": settings.group_id,
        "topic": topic,
        "lagThreshold": str(LAG_OF_A_PROCESS * deployment.processes),
        "offsetResetPolicy": "earliest",
        "version": KAFKA_VERSION,
    }
    if settings.uses_sasl:
        found["sasl"] = _SASL[settings.sasl_mechanism]
    if settings.uses_ssl:
        found["tls"] = "enable"
    return found


def _secrets(deployment: KubernetesDeployment) -> list[dict[str, str]]:
    """What KEDA reads of Secrets, by its own parameters."""
    settings = deployment.settings
    user = deployment.named(Component.WORKER)
    found: list[dict[str, str]] = []
    if settings.uses_ssl and deployment.ca_secret is not None:
        found.append({"parameter": "ca", "name": deployment.ca_secret, "key": "ca.crt"})
    if settings.uses_sasl:
        found.append({"parameter": "password", "name": user, "key": "password"})
    elif settings.uses_ssl:
        found.append({"parameter": "cert", "name": user, "key": "user.crt"})
        found.append({"parameter": "key", "name": user, "key": "user.key"})
    return found
