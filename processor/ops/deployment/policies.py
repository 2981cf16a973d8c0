"""The policies of the pods: evictions, connections, and who scrapes them."""

from typing import Any, Final

from processor.contract.rights import Role
from processor.ops.deployment.plan import KubernetesDeployment
from processor.ops.deployment.workloads import PORT_NAME, PORTS
from processor.settings import Settings

SCRAPE_EVERY: Final = "15s"
_DNS: Final = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def disruption_budget(deployment: KubernetesDeployment, role: Role) -> dict[str, Any]:
    """One pod at a time is evicted."""
    return deployment.resource(
        "policy/v1 PodDisruptionBudget",
        deployment.named(role),
        role,
        {"maxUnavailable": 1, "selector": {"matchLabels": deployment.labels(role)}},
    )


def network_policy(deployment: KubernetesDeployment, role: Role) -> dict[str, Any]:
    """In: pods of the cluster, at the HTTP port. Out: the brokers, DNS, and of views each other."""
    http = [{"protocol": "TCP", "port": PORTS[role]}]
    labels = {"matchLabels": deployment.labels(role)}
    egress: list[dict[str, Any]] = [
        {"ports": [{"protocol": "TCP", "port": p} for p in _broker_ports(deployment.settings)]},
        {"to": [{"namespaceSelector": {}}], "ports": _DNS},
    ]
    if role is Role.VIEWS:
        egress.append({"to": [{"podSelector": labels}], "ports": http})
    return deployment.resource(
        "networking.k8s.io/v1 NetworkPolicy",
        deployment.named(role),
        role,
        {
            "podSelector": labels,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": http}],
            "egress": egress,
        },
    )


def service_monitor(deployment: KubernetesDeployment, role: Role) -> dict[str, Any]:
    """Have Prometheus scrape each pod, also one that is not ready."""
    return deployment.resource(
        "monitoring.coreos.com/v1 ServiceMonitor",
        deployment.named(role),
        role,
        {
            "selector": {"matchLabels": deployment.labels(role)},
            "endpoints": [{"port": PORT_NAME, "path": "/metrics", "interval": SCRAPE_EVERY}],
        },
    )


def _broker_ports(settings: Settings) -> list[int]:
    """Of the addresses that are known; brokers may be found at others only with the same ports."""
    return sorted({int(part.rpartition(":")[2]) for part in settings.bootstrap_servers.split(",")})
