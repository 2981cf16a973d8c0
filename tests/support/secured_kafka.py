"""A real Kafka that asks who is there and allows only what an ACL says: SASL_SSL with a CA of its
own, SCRAM, OAUTHBEARER with a key set (JWKS) of its own, and KRaft's StandardAuthorizer."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization

from processor.contract.rights import Operation, ResourceKind, Right
from processor.embedded import broker as embedded
from processor.embedded.broker import EmbeddedBroker, embedded_broker, free_port
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

HOST: Final = "127.0.0.1"
_TIMEOUT_S: Final = patience(20.0)
_OAUTH: Final = "listener.name.oauth.oauthbearer"
_LOGIN: Final = "org.apache.kafka.common.security"
_KINDS: Final = {
    ResourceKind.TOPIC: ResourceType.TOPIC,
    ResourceKind.GROUP: ResourceType.GROUP,
    ResourceKind.TRANSACTIONAL_ID: ResourceType.TRANSACTIONAL_ID,
}
_OPERATIONS: Final = {
    Operation.READ: AclOperation.READ,
    Operation.WRITE: AclOperation.WRITE,
    Operation.CREATE: AclOperation.CREATE,
    Operation.ALTER: AclOperation.ALTER,
    Operation.DESCRIBE: AclOperation.DESCRIBE,
    Operation.DESCRIBE_CONFIGS: AclOperation.DESCRIBE_CONFIGS,
}


@dataclass(frozen=True, slots=True)
class User:
    """A SCRAM user; `password` is what no output may hold."""

    name: str
    password: str

    @property
    def principal(self) -> str:
        return f"User:{self.name}"


class SecuredKafka:
    """The broker, and the administrator's hand on users and ACLs.

    The PLAINTEXT listener is the administrator's: its principal, ANONYMOUS, may do everything.
    """

    def __init__(
        self, broker: EmbeddedBroker, scram: str, oauth: str, ca_file: Path, issuer: Issuer
    ) -> None:
        self.broker = broker
        self.issuer = issuer
        self.scram = scram
        self.oauth = oauth
        self.ca_file = ca_file
        self._admin = AdminClient(
            {"bootstrap.servers": broker.bootstrap, "log_level": 0, "socket.timeout.ms": 20_000}
        )

    def new_users(self, *names: str) -> list[User]:
        users = [User(name, f"secret-{secrets.token_hex(8)}") for name in names]
        _done(
            self._admin.alter_user_scram_credentials(
                [
                    UserScramCredentialUpsertion(
                        user.name,
                        ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096),
                        user.password.encode(),
                    )
                    for user in users
                ]
            )
        )
        return users

    def settings(self, user: User, **chosen: Any) -> Settings:
        """As `user`, by SCRAM over TLS."""
        return Settings(
            bootstrap_servers=self.scram,
            security_protocol="SASL_SSL",
            sasl_username=user.name,
            sasl_password=user.password,
            ssl_cafile=self.ca_file,
            **chosen,
        )

    def administrator(self, **chosen: Any) -> Settings:
        return Settings(bootstrap_servers=self.broker.bootstrap, **chosen)

    def allow(self, principal: str, rights: Iterable[Right]) -> None:
        """Returns when the broker heeds it."""
        wanted = list(rights)
        _done(self._admin.create_acls([_binding(principal, right) for right in wanted]))
        self._until(principal, lambda held: set(map(_acl_of(principal), wanted)) <= held)

    def forbid(self, principal: str, rights: Iterable[Right]) -> None:
        """Take what was allowed away again; returns when the broker heeds it."""
        unwanted = list(rights)
        _done(self._admin.delete_acls([_filter(principal, right) for right in unwanted]))
        self._until(principal, lambda held: not set(map(_acl_of(principal), unwanted)) & held)

    def _until(self, principal: str, holds: Callable[[set[tuple[Any, ...]]], bool]) -> None:
        """The controller has it at once; the broker answers by what it has applied."""
        deadline = time.monotonic() + _TIMEOUT_S
        every = AclBindingFilter(
            ResourceType.ANY,
            None,  # type: ignore[arg-type]
            ResourcePatternType.ANY,
            principal,
            None,  # type: ignore[arg-type]
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        while True:
            held = self._admin.describe_acls(every).result(_TIMEOUT_S)
            if holds({(a.restype, a.name, a.resource_pattern_type, a.operation) for a in held}):
                return
            assert time.monotonic() < deadline, f"the ACLs of {principal} did not come into force"


@asynccontextmanager
async def secured_kafka(home: Path) -> AsyncIterator[SecuredKafka]:
    """`home`: for the CA and the broker's key."""
    authority = trustme.CA()
    ca_file, key_file = home / "ca.pem", home / "broker.pem"
    authority.cert_pem.write_to_path(ca_file)
    key_file.write_bytes(_key_and_chain(authority.issue_cert(HOST)))
    issuer, jwks = Issuer(), home / "jwks.json"
    jwks.write_text(issuer.jwks())
    ports = [free_port() for _ in range(4)]
    port, controller, scram, oauth = ports
    properties = _properties(port, controller, scram, oauth, key_file, ca_file, jwks)
    with _allowed_to_read(jwks):
        broker_context = embedded_broker(port=port, properties=properties)
        broker = await broker_context.__aenter__()
    try:
        yield SecuredKafka(broker, f"{HOST}:{scram}", f"{HOST}:{oauth}", ca_file, issuer)
    finally:
        await broker_context.__aexit__(None, None, None)


@contextmanager
def _allowed_to_read(jwks: Path) -> Iterator[None]:
    """A JVM that is started meanwhile may read keys there: Kafka asks for a system property."""
    options = embedded._jvm_options

    def with_property(directory: Path, heap: str) -> list[str]:
        return [
            *options(directory, heap),
            f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}",
        ]

    embedded._jvm_options = with_property
    try:
        yield
    finally:
        embedded._jvm_options = options


def _properties(
    port: int,
    controller: int,
    scram: int,
    oauth: int,
    key_file: Path,
    ca_file: Path,
    jwks: Path,
) -> dict[str, str]:
    doors = {"PLAINTEXT": port, "SCRAM": scram, "OAUTH": oauth}
    listeners = ",".join(f"{name}://{HOST}:{number}" for name, number in doors.items())
    return {
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "listeners": f"{listeners},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_SSL,OAUTH:SASL_SSL"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(key_file),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca_file),
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": (
            f"{_LOGIN}.scram.ScramLoginModule required;"
        ),
        "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.oauth.oauthbearer.sasl.jaas.config": (
            f"{_LOGIN}.oauthbearer.OAuthBearerLoginModule required "
            'unsecuredLoginStringClaim_sub="broker";'
        ),
        f"{_OAUTH}.sasl.server.callback.handler.class": (
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"
        ),
        f"{_OAUTH}.sasl.oauthbearer.jwks.endpoint.url": jwks.as_uri(),
        f"{_OAUTH}.sasl.oauthbearer.expected.audience": AUDIENCE,
        f"{_OAUTH}.sasl.oauthbearer.expected.issuer": ISSUER,
    }


def _key_and_chain(issued: trustme.LeafCert) -> bytes:
    """PEM as Kafka wants it: the key in PKCS #8."""
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), password=None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + b"".join(part.bytes() for part in issued.cert_chain_pems)


def _binding(principal: str, right: Right) -> AclBinding:
    return AclBinding(*_acl(principal, right))


def _filter(principal: str, right: Right) -> AclBindingFilter:
    return AclBindingFilter(*_acl(principal, right))


def _acl(principal: str, right: Right) -> tuple[Any, ...]:
    pattern = (
        ResourcePatternType.PREFIXED if right.resource.prefixed else ResourcePatternType.LITERAL
    )
    return (
        _KINDS[right.resource.kind],
        right.resource.name,
        pattern,
        principal,
        "*",
        _OPERATIONS[right.operation],
        AclPermissionType.ALLOW,
    )


def _acl_of(principal: str) -> Callable[[Right], tuple[Any, ...]]:
    def acl(right: Right) -> tuple[Any, ...]:
        kind, name, pattern, _, _, operation, _ = _acl(principal, right)
        return kind, name, pattern, operation

    return acl


def _done(futures: dict[Any, Any]) -> None:
    for future in futures.values():
        future.result(_TIMEOUT_S)
