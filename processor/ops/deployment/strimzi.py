"""Topics and users for Strimzi, from the table of topics and the table of rights."""

from collections.abc import Iterator
from typing import Any

from processor.contract.rights import rights
from processor.contract.topics import SignalTopics
from processor.ops.acls import STRIMZI_VERSION, strimzi_user
from processor.ops.deployment.plan import Component, KubernetesDeployment


def kafka_topics(deployment: KubernetesDeployment) -> Iterator[dict[str, Any]]:
    """What `taskflow topics create` makes, with `--signals` if there are any."""
    settings = deployment.settings
    wanted = [*deployment.topics]
    if deployment.signals:
        wanted += SignalTopics(settings.topic_prefix)
    for topic, spec in wanted:
        made = deployment.resource(
            f"{STRIMZI_VERSION} KafkaTopic",
            deployment.named(spec.name),
            "kafka",
            {
                "topicName": topic,
                "partitions": settings.partitions_of(topic),
                "replicas": settings.replication_factor,
                "config": spec.replicated(settings.replication_factor),
            },
        )
        yield _of_the_cluster(deployment, made)


def has_users(deployment: KubernetesDeployment) -> bool:
    """Whether Strimzi makes users of the kind that the settings ask for."""
    settings = deployment.settings
    if settings.uses_sasl:
        return settings.sasl_mechanism == "SCRAM-SHA-512"
    return settings.uses_ssl


def kafka_users(
    deployment: KubernetesDeployment, *components: Component
) -> Iterator[dict[str, Any]]:
    """A user for the pods of each component, with the rights of `taskflow topics acls`. Its name is
    that of the Secret that Strimzi makes for it."""
    settings = deployment.settings
    subject = "" if settings.uses_sasl else "CN="
    for component in components:
        needed = rights(deployment.role_of(component), deployment.topics, settings.group_id)
        user = strimzi_user(needed, f"User:{subject}{deployment.named(component)}")
        yield _of_the_cluster(
            deployment,
            deployment.resource(
                f"{STRIMZI_VERSION} KafkaUser", user["metadata"]["name"], component, user["spec"]
            ),
        )


def _of_the_cluster(deployment: KubernetesDeployment, resource: dict[str, Any]) -> dict[str, Any]:
    """Strimzi's operators look at the label."""
    resource["metadata"]["labels"]["strimzi.io/cluster"] = deployment.kafka_cluster
    return resource
