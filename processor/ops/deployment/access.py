"""The credentials of pods at Kafka: from files that Secrets and service accounts give."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from processor.ops.deployment.plan import Component, KubernetesDeployment
from processor.settings import variable

HOME: Final = "/etc/taskflow"
READABLE: Final = 0o440
"""By the group of the pod's files alone."""
TOKEN_AUDIENCE: Final = "kafka"
TOKEN_LIFE_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume, and where a container has it."""

    name: str
    path: str
    source: Mapping[str, Any]
    """What Kubernetes takes beside the volume's name."""
    read_only: bool = True


def secret_mount(name: str, secret: str) -> Mount:
    """The keys of a Secret as files."""
    return Mount(
        name, f"{HOME}/{name}", {"secret": {"secretName": secret, "defaultMode": READABLE}}
    )


def access_mounts(deployment: KubernetesDeployment, component: Component) -> Iterator[Mount]:
    """The files that prove who a pod of this component is."""
    settings = deployment.settings
    if settings.uses_ssl and deployment.ca_secret is not None:
        yield secret_mount("ca", deployment.ca_secret)
    if settings.uses_oauth:
        token = {
            "audience": TOKEN_AUDIENCE,
            "expirationSeconds": TOKEN_LIFE_S,
            "path": "token",
        }
        yield Mount(
            "token",
            f"{HOME}/token",
            {
                "projected": {
                    "defaultMode": READABLE,
                    "sources": [{"serviceAccountToken": token}],
                }
            },
        )
    elif settings.security_protocol != "PLAINTEXT":
        yield secret_mount("user", deployment.named(component))


def access_environment(deployment: KubernetesDeployment, component: Component) -> dict[str, str]:
    """The settings that name those files."""
    settings = deployment.settings
    found: dict[str, str] = {}
    if settings.uses_ssl and deployment.ca_secret is not None:
        found["ssl_cafile"] = f"{HOME}/ca/ca.crt"
    if settings.uses_oauth:
        found["sasl_oauth_token_file"] = f"{HOME}/token/token"
    elif settings.uses_sasl:
        found["sasl_username"] = deployment.named(component)
        found["sasl_password_file"] = f"{HOME}/user/password"
    elif settings.uses_ssl:
        found["ssl_certfile"] = f"{HOME}/user/user.crt"
        found["ssl_keyfile"] = f"{HOME}/user/user.key"
    return {variable(field): value for field, value in found.items()}
