"""Format the rights of a role as kafka-acls.sh lines or a Strimzi KafkaUser."""

import shlex
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from processor.contract.rights import Operation, Resource, ResourceKind, Right

_FLAGS: Final = {
    ResourceKind.TOPIC: "--topic",
    ResourceKind.GROUP: "--group",
    ResourceKind.TRANSACTIONAL_ID: "--transactional-id",
}
_STRIMZI_TYPES: Final = {
    ResourceKind.TOPIC: "topic",
    ResourceKind.GROUP: "group",
    ResourceKind.TRANSACTIONAL_ID: "transactionalId",
}
_KINDS: Final = list(_FLAGS)

STRIMZI_CLUSTER: Final = "my-cluster"
"""What stands for the name of the Kafka resource, which we do not know."""
STRIMZI_VERSION: Final = "kafka.strimzi.io/v1"


def by_resource(rights: Sequence[Right]) -> list[tuple[Resource, list[Operation]]]:
    """Each resource once, with all operations on it: topics, groups, transactional ids."""
    order = sorted(rights, key=lambda right: (_KINDS.index(right.resource.kind), right.resource))
    return [
        (resource, [right.operation for right in some])
        for resource, some in groupby(order, key=lambda right: right.resource)
    ]


def kafka_acls(rights: Sequence[Right], principal: str, bootstrap: str) -> list[str]:
    """A line of shell for each resource."""
    lines = []
    for resource, operations in by_resource(rights):
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap, "--add"]
        words += ["--allow-principal", principal]
        for operation in operations:
            words += ["--operation", operation]
        words += [_FLAGS[resource.kind], resource.name]
        if resource.prefixed:
            words += ["--resource-pattern-type", "prefixed"]
        lines.append(shlex.join(words))
    return lines


def strimzi_user(rights: Sequence[Right], principal: str) -> dict[str, Any]:
    """A `KafkaUser`: with SCRAM, or with a certificate if the principal is the subject of one."""
    name = principal.partition(":")[2]
    by_certificate = name.startswith("CN=")
    return {
        "apiVersion": STRIMZI_VERSION,
        "kind": "KafkaUser",
        "metadata": {
            "name": name.removeprefix("CN="),
            "labels": {"strimzi.io/cluster": STRIMZI_CLUSTER},
        },
        "spec": {
            "authentication": {"type": "tls" if by_certificate else "scram-sha-512"},
            "authorization": {
                "type": "simple",
                "acls": [
                    {
                        "resource": {
                            "type": _STRIMZI_TYPES[resource.kind],
                            "name": resource.name,
                            "patternType": "prefix" if resource.prefixed else "literal",
                        },
                        "operations": [str(operation) for operation in operations],
                    }
                    for resource, operations in by_resource(rights)
                ],
            },
        },
    }
