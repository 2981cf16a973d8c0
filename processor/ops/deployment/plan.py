"""The plan of a deployment: names, sizes, and the settings that its services get."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from processor.contract.rights import Role
from processor.contract.topics import Topics
from processor.ops.deployment.operators import Operator
from processor.settings import PREFIX, SECRET_FILES, Settings, variable


class Component(StrEnum):
    """A service of a deployment, by which its resources and its units are named."""

    WORKER = "worker"
    VIEWS = "views"
    SIGNALS = "signals"
    OUTBOX = "outbox"


NAME_MAX: Final = 40
"""Leaves room in Kubernetes' 63 characters for a component, an ordinal and a hash."""
NAME: Final = rf"[a-z]([a-z0-9-]{{0,{NAME_MAX - 2}}}[a-z0-9])?"

GRACE_S: Final = 20
"""From SIGTERM to SIGKILL. A worker drains in 5 s, and gives its processes 8 s."""

_BASE_MIB: Final = 384
_PROCESS_MIB: Final = 128
SIGNALS_MIB: Final = 384
OUTBOX_MIB: Final = 384
VIEWS_MIB: Final = 512
"""See processor/views/README.md: up to 391 MiB while a view catches up."""

_ROLES: Final[Mapping[Component, Role]] = {
    Component.WORKER: Role.WORKER,
    Component.VIEWS: Role.VIEWS,
    Component.SIGNALS: Role.SIGNALS,
    Component.OUTBOX: Role.PRODUCER,
}
_NOT_OF_SERVICES: Final = frozenset(
    variable(field)
    for field in (
        *("replication_factor", "cache_dir", "broker_heap", "broker_jit", "broker_aot", "faults"),
        # The deployment's own: where things are, and who a worker is.
        *("instance_id", "state_dir", "http", "views_http", "views_advertise", "http_hosts"),
        *("signals_http", "outbox_http"),
        *("sasl_username", "sasl_oauth_token_file", "ssl_cafile", "ssl_certfile", "ssl_keyfile"),
    )
)


@dataclass(frozen=True, slots=True)
class KubernetesDeployment:
    """The services of one topic prefix, on Kubernetes."""

    name: str
    """What the names of all resources begin with."""
    settings: Settings
    environment: Mapping[str, str]
    """Variables that all services get as they are."""
    container: str
    """The name of its image, with a tag or a digest."""
    namespace: str | None = None
    workers: int = 2
    processes: int = 1
    """Of each worker."""
    views: int = 1
    signals: int = 0
    """How many processes of `taskflow signals`; with 0 there are no topics for them either."""
    outbox: int = 0
    """How many relays of `taskflow outbox`; one sends, the others stand by."""
    storage: str = "10Gi"
    """Of each worker and each view worker, for its tables."""
    kafka_cluster: str = "my-cluster"
    """Strimzi's Kafka resource."""
    ca_secret: str | None = None
    """Its `ca.crt` is what to trust; None: what the system trusts."""
    operators: frozenset[Operator] = frozenset(Operator)

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.topic_prefix)

    @property
    def workers_max(self) -> int:
        """How many workers have a partition for each of their processes."""
        return math.ceil(self.settings.partitions / self.processes)

    def named(self, component: str) -> str:
        return f"{self.name}-{component}"

    def labels(self, component: str) -> dict[str, str]:
        return self.selector | {"app.kubernetes.io/component": component}

    @property
    def selector(self) -> dict[str, str]:
        """The labels of all that belongs to the deployment."""
        return {"app.kubernetes.io/name": "taskflow", "app.kubernetes.io/instance": self.name}

    def resource(
        self, version_and_kind: str, name: str, component: str, spec: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A resource such as `v1 Service`, of a component."""
        version, kind = version_and_kind.split()
        namespace = {} if self.namespace is None else {"namespace": self.namespace}
        return {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": name, **namespace, "labels": self.labels(component)},
            "spec": spec,
        }

    def role_of(self, component: Component) -> Role:
        """What a component may do; views by whether they have a token of operators."""
        if component is Component.VIEWS and self.settings.views_operator_token is not None:
            return Role.VIEWS_ACTING
        return _ROLES[component]


def name_from(prefix: str) -> str | None:
    """A topic prefix as a name in Kubernetes; None if it is none."""
    name = re.sub(r"[._]", "-", prefix.lower())
    return name if re.fullmatch(NAME, name) else None


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings in `environ` that services get as they are given: no secrets, nothing
    that is the deployment's own, and nothing of other programs."""
    kept = set(map(variable, Settings.model_fields)) - set(SECRET_FILES.values()) - _NOT_OF_SERVICES
    return {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX) and name in kept and value
    }


def memory_mib(settings: Settings, processes: int) -> int:
    """What a worker may take; docs/figures.md has what it took."""
    larger_cache = max(0, settings.flow_cache_bytes - Settings().flow_cache_bytes) // (1024 * 1024)
    return _BASE_MIB + _PROCESS_MIB * processes + larger_cache
