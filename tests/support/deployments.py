"""Deployments of every kind that `taskflow deploy` writes manifests for."""

from collections.abc import Mapping
from typing import Any

from processor.ops.deployment.kubernetes import Manifests, manifests
from processor.ops.deployment.plan import KubernetesDeployment, passed_on
from processor.settings import load_settings

ENVIRON: Mapping[str, str] = {
    "TASKFLOW_BOOTSTRAP_SERVERS": "kafka-1:9092,kafka-2:9093",
    "TASKFLOW_TOPIC_PREFIX": "shop",
    "TASKFLOW_PARTITIONS": "12",
    "TASKFLOW_STEPS_PARTITIONS": "24",
    "TASKFLOW_REPLICATION_FACTOR": "3",
}
PASSWORD: Mapping[str, str] = {
    "TASKFLOW_SASL_USERNAME": "somebody",
    "TASKFLOW_SASL_PASSWORD": "what nobody may see",
}
ACCESS: Mapping[str, Mapping[str, str]] = {
    "nothing": {},
    "certificate": {"TASKFLOW_SECURITY_PROTOCOL": "SSL"},
    "scram": {"TASKFLOW_SECURITY_PROTOCOL": "SASL_SSL", **PASSWORD},
    "scram without TLS": {"TASKFLOW_SECURITY_PROTOCOL": "SASL_PLAINTEXT", **PASSWORD},
    "another password": {
        "TASKFLOW_SECURITY_PROTOCOL": "SASL_SSL",
        "TASKFLOW_SASL_MECHANISM": "PLAIN",
        **PASSWORD,
    },
    "token": {
        "TASKFLOW_SECURITY_PROTOCOL": "SASL_SSL",
        "TASKFLOW_SASL_MECHANISM": "OAUTHBEARER",
        "TASKFLOW_SASL_OAUTH_TOKEN_FILE": "/elsewhere/token",
    },
}
"""By how it proves to Kafka who it is: more of its environment."""


def deployment(
    access: str = "nothing", environ: Mapping[str, str] | None = None, **more: Any
) -> KubernetesDeployment:
    """With those settings; `more`: fields of the KubernetesDeployment."""
    given = {**ENVIRON, **ACCESS[access], **(environ or {})}
    return KubernetesDeployment(
        **{
            "name": "shop",
            "settings": load_settings(given),
            "environment": passed_on(given),
            "container": "registry.example.org/taskflow:1",
            "ca_secret": "my-cluster-cluster-ca-cert",
            **more,
        }
    )


def every_kind() -> dict[str, Manifests]:
    """Manifests that together have all that any have."""
    found = {access: manifests(deployment(access)) for access in ACCESS}
    found["few"] = manifests(
        deployment(namespace="prod", views=0, processes=4, operators=frozenset())
    )
    found["signals and outbox"] = manifests(deployment("scram", signals=2, outbox=2))
    return found
