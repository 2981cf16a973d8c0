"""Pods: StatefulSets of the services, and the Services that find them."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from processor.ops.deployment.access import (
    HOME,
    Mount,
    access_environment,
    access_mounts,
    secret_mount,
)
from processor.ops.deployment.operators import Operator
from processor.ops.deployment.plan import (
    GRACE_S,
    OUTBOX_MIB,
    SIGNALS_MIB,
    VIEWS_MIB,
    Component,
    KubernetesDeployment,
    memory_mib,
)

USER_ID: Final = 1000
"""Of the Dockerfile's user."""
WORKER_PORT: Final = 8900
VIEWS_PORT: Final = 8901
SIGNALS_PORT: Final = 8905
OUTBOX_PORT: Final = 8904
PORTS: Final[Mapping[Component, int]] = {
    Component.WORKER: WORKER_PORT,
    Component.VIEWS: VIEWS_PORT,
    Component.SIGNALS: SIGNALS_PORT,
    Component.OUTBOX: OUTBOX_PORT,
}
DATA: Final = "/data"
PORT_NAME: Final = "http"
PEER_SECRET: Final = "peer-secret"
READ_TOKEN: Final = "read-token"
OPERATOR_TOKEN: Final = "operator-token"
DSN: Final = "dsn"
POD_NAME: Final = {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
CLUSTER_HOSTS: Final = ("*.svc", "*.svc.cluster.local")
"""What requests by the full name of a Service ask for."""


def scaled(deployment: KubernetesDeployment) -> bool:
    """Whether the number of workers is KEDA's to say. It has no tokens of service accounts."""
    return Operator.KEDA in deployment.operators and not deployment.settings.uses_oauth


def workers(deployment: KubernetesDeployment) -> list[dict[str, Any]]:
    """The StatefulSet of `taskflow worker` and its Service."""
    component = Component.WORKER
    name = deployment.named(component)
    processes = deployment.processes
    arguments = ["worker"] if processes == 1 else ["worker", "--processes", str(processes)]
    container = _container(
        deployment,
        component,
        arguments,
        port=WORKER_PORT,
        environment={
            "TASKFLOW_STATE_DIR": DATA,
            "TASKFLOW_HTTP": f"0.0.0.0:{WORKER_PORT}",
            "TASKFLOW_HTTP_HOSTS": _hosts(deployment),
            # The StatefulSet's ordinal: the same pod gets its partitions, and has their tables.
            "TASKFLOW_INSTANCE_ID": POD_NAME,
        },
        resources=_resources(memory_mib(deployment.settings, processes), cores=processes),
    )
    count = {} if scaled(deployment) else {"replicas": deployment.workers}
    return [
        _headless(deployment, component, WORKER_PORT),
        deployment.resource(
            "apps/v1 StatefulSet",
            name,
            component,
            count | _stateful(deployment, component, container),
        ),
    ]


def views(deployment: KubernetesDeployment) -> list[dict[str, Any]]:
    """The StatefulSet of `taskflow views`, its Service, and one for readers."""
    component = Component.VIEWS
    name, readers = deployment.named(component), deployment.named(f"{component}-http")
    tokens = {"PEER_SECRET": PEER_SECRET, "READ_TOKEN": READ_TOKEN}
    if deployment.settings.views_operator_token is not None:
        tokens["OPERATOR_TOKEN"] = OPERATOR_TOKEN
    container = _container(
        deployment,
        component,
        ["views"],
        port=VIEWS_PORT,
        environment={
            "TASKFLOW_STATE_DIR": DATA,
            "TASKFLOW_VIEWS_HTTP": f"0.0.0.0:{VIEWS_PORT}",
            "POD_NAME": POD_NAME,
            "TASKFLOW_VIEWS_ADVERTISE": f"http://$(POD_NAME).{name}:{VIEWS_PORT}",
            "TASKFLOW_HTTP_HOSTS": _hosts(deployment, readers),
            **{
                f"TASKFLOW_VIEWS_{name}_FILE": f"{HOME}/{component}/{key}"
                for name, key in tokens.items()
            },
        },
        resources=_resources(VIEWS_MIB, cores=1),
        mounts=[secret_mount(component, deployment.named(f"{component}-tokens"))],
    )
    return [
        _headless(deployment, component, VIEWS_PORT),
        deployment.resource(
            "v1 Service",
            readers,
            "readers",
            {
                "selector": deployment.labels(component),
                "ports": [{"name": PORT_NAME, "port": VIEWS_PORT, "targetPort": PORT_NAME}],
            },
        ),
        deployment.resource(
            "apps/v1 StatefulSet",
            name,
            component,
            {"replicas": deployment.views} | _stateful(deployment, component, container),
        ),
    ]


def signals(deployment: KubernetesDeployment) -> list[dict[str, Any]]:
    """The StatefulSet of `taskflow signals`, and its Service."""
    component = Component.SIGNALS
    container = _container(
        deployment,
        component,
        ["signals"],
        port=SIGNALS_PORT,
        environment={
            "TASKFLOW_STATE_DIR": DATA,
            "TASKFLOW_SIGNALS_HTTP": f"0.0.0.0:{SIGNALS_PORT}",
            "TASKFLOW_HTTP_HOSTS": _hosts(deployment),
        },
        resources=_resources(SIGNALS_MIB, cores=1),
        data={"emptyDir": {}},
    )
    return _stateless(deployment, component, container, deployment.signals)


def outbox(deployment: KubernetesDeployment) -> list[dict[str, Any]]:
    """The StatefulSet of `taskflow outbox`, and its Service.

    A relay that stands by is never ready, and an update would wait for it: a pod counts as ready
    once it lives.
    """
    component = Component.OUTBOX
    described, mounts = _container(
        deployment,
        component,
        ["outbox"],
        port=OUTBOX_PORT,
        environment={
            "TASKFLOW_OUTBOX_HTTP": f"0.0.0.0:{OUTBOX_PORT}",
            "TASKFLOW_OUTBOX_DSN_FILE": f"{HOME}/{component}/{DSN}",
            "TASKFLOW_HTTP_HOSTS": _hosts(deployment),
        },
        resources=_resources(OUTBOX_MIB, cores=1),
        mounts=[secret_mount(component, deployment.named(f"{component}-database"))],
        data={"emptyDir": {}},
    )
    described["readinessProbe"] = _probe("/live", period_s=5, failures=2)
    return _stateless(deployment, component, (described, mounts), deployment.outbox)


def _stateless(
    deployment: KubernetesDeployment,
    component: Component,
    container: tuple[dict[str, Any], list[Mount]],
    replicas: int,
) -> list[dict[str, Any]]:
    """A StatefulSet whose pods keep nothing, and its Service."""
    spec = _stateful(deployment, component, container)
    del spec["volumeClaimTemplates"], spec["persistentVolumeClaimRetentionPolicy"]
    return [
        _headless(deployment, component, PORTS[component]),
        deployment.resource(
            "apps/v1 StatefulSet",
            deployment.named(component),
            component,
            {"replicas": replicas} | spec,
        ),
    ]


def _hosts(deployment: KubernetesDeployment, *services: str) -> str:
    return ",".join((*services, *CLUSTER_HOSTS, *deployment.settings.http_hosts))


def _headless(deployment: KubernetesDeployment, component: Component, port: int) -> dict[str, Any]:
    """Gives each pod a name, and Prometheus all of them, also those that are not ready."""
    return deployment.resource(
        "v1 Service",
        deployment.named(component),
        component,
        {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": deployment.labels(component),
            "ports": [{"name": PORT_NAME, "port": port, "targetPort": PORT_NAME}],
        },
    )


def _stateful(
    deployment: KubernetesDeployment,
    component: Component,
    container: tuple[dict[str, Any], list[Mount]],
) -> dict[str, Any]:
    """A StatefulSet's spec, without its replicas.

    All pods start at once; an update takes one after the other, each once the last is ready.
    """
    described, mounts = container
    labels = deployment.labels(component)
    return {
        "serviceName": deployment.named(component),
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        # Tables are caches: who deletes the deployment loses none of the data.
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": GRACE_S,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER_ID,
                    "runAsGroup": USER_ID,
                    "fsGroup": USER_ID,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "topologySpreadConstraints": [
                    {
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": labels},
                    }
                ],
                "containers": [described],
                "volumes": [
                    {"name": mount.name, **mount.source} for mount in mounts if mount.source
                ],
            },
        },
        "volumeClaimTemplates": [
            {
                "metadata": {"name": "data"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": deployment.storage}},
                },
            }
        ],
    }


def _container(
    deployment: KubernetesDeployment,
    component: Component,
    arguments: list[str],
    *,
    port: int,
    environment: Mapping[str, Any],
    resources: Mapping[str, Any],
    mounts: Iterable[Mount] = (),
    data: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Any], list[Mount]]:
    """A container, and what it mounts. `data`: the volume of its state directory, if it is none
    that the StatefulSet claims."""
    mounted = [
        Mount("data", DATA, dict(data), read_only=False),
        Mount("tmp", "/tmp", {"emptyDir": {}}, read_only=False),
        *access_mounts(deployment, component),
        *mounts,
    ]
    defaults = {"TASKFLOW_PARTITIONS": str(deployment.settings.partitions)}
    variables: dict[str, Any] = (
        {**defaults, "TASKFLOW_LOG_FORMAT": "json", **deployment.environment}
        | access_environment(deployment, component)
        | dict(environment)
    )
    described = {
        "name": str(component),
        "image": deployment.container,
        "args": arguments,
        "env": [
            {"name": name, **(value if isinstance(value, dict) else {"value": value})}
            for name, value in variables.items()
        ],
        "ports": [{"name": PORT_NAME, "containerPort": port}],
        # A process that responds late is busy: only one that does not for a minute is stopped.
        "startupProbe": _probe("/live", period_s=2, failures=60),
        "livenessProbe": _probe("/live", period_s=10, failures=6),
        "readinessProbe": _probe("/ready", period_s=5, failures=2),
        "resources": dict(resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": mount.name, "mountPath": mount.path}
            | ({"readOnly": True} if mount.read_only else {})
            for mount in mounted
        ],
    }
    return described, mounted


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _resources(memory_mib: int, *, cores: int) -> dict[str, Any]:
    """Half of what is used under full load is set aside of the cores, all of the memory."""
    memory = f"{memory_mib}Mi"
    return {
        "requests": {"cpu": f"{500 * cores}m", "memory": memory},
        "limits": {"memory": memory},
    }
