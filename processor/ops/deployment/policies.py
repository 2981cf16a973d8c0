"""The policies of the pods: evictions, connections, and who scrapes them."""

from typing import Any, Final

from processor.ops.deployment.plan import Component, KubernetesDeployment
from processor.ops.deployment.workloads import PORT_NAME, PORTS
from processor.settings import Settings

SCRAPE_EVERY: Final = "15s"
POSTGRES_PORT: Final = 5432
"""The address of the database is a secret; another port needs a policy of its own."""
_DNS: Final = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def disruption_budget(deployment: KubernetesDeployment, component: Component) -> dict[str, Any]:
    """One pod at a time is evicted."""
    return deployment.resource(
        "policy/v1 PodDisruptionBudget",
        deployment.named(component),
        component,
        {"maxUnavailable": 1, "selector": {"matchLabels": deployment.labels(component)}},
    )


def network_policy(deployment: KubernetesDeployment, component: Component) -> dict[str, Any]:
    """In: pods of the cluster, at the HTTP port. Out: the brokers, DNS, of views each other, and of
    an outbox's relay PostgreSQL."""
    http = [{"protocol": "TCP", "port": PORTS[component]}]
    labels = {"matchLabels": deployment.labels(component)}
    egress: list[dict[str, Any]] = [
        {"ports": [{"protocol": "TCP", "port": p} for p in _broker_ports(deployment.settings)]},
        {"to": [{"namespaceSelector": {}}], "ports": _DNS},
    ]
    if component is Component.VIEWS:
        egress.append({"to": [{"podSelector": labels}], "ports": http})
    if component is Component.OUTBOX:
        egress.append({"ports": [{"protocol": "TCP", "port": POSTGRES_PORT}]})
    return deployment.resource(
        "networking.k8s.io/v1 NetworkPolicy",
        deployment.named(component),
        component,
        {
            "podSelector": labels,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": http}],
            "egress": egress,
        },
    )


def service_monitor(deployment: KubernetesDeployment, component: Component) -> dict[str, Any]:
    """Have Prometheus scrape each pod, also one that is not ready."""
    return deployment.resource(
        "monitoring.coreos.com/v1 ServiceMonitor",
        deployment.named(component),
        component,
        {
            "selector": {"matchLabels": deployment.labels(component)},
            "endpoints": [{"port": PORT_NAME, "path": "/metrics", "interval": SCRAPE_EVERY}],
        },
    )


def _broker_ports(settings: Settings) -> list[int]:
    """Of the addresses that are known; brokers may be found at others only with the same ports."""
    return sorted({int(part.rpartition(":")[2]) for part in settings.bootstrap_servers.split(",")})
