"""The operators of a Kubernetes cluster that manifests are made for."""

from enum import StrEnum


class Operator(StrEnum):
    """Whose custom resources a cluster may have."""

    STRIMZI = "strimzi"
    KEDA = "keda"
    PROMETHEUS = "prometheus"
