"""Errors of Kafka that the processor explains, each in one sentence."""

import errno
import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailed,
    StaleMetadata,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
)

from processor.adapters.kafka.access.oauth import TokenUnavailable
from processor.adapters.kafka.access.principal import principal, principal_of
from processor.contract.rights import (
    Operation,
    Resource,
    ResourceKind,
    Right,
    Role,
    on_group,
    on_topic,
)
from processor.errors import TaskflowError
from processor.settings import Settings

_NO_ENTRY = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
_FORBIDDEN = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
_SILENCE = (KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError, StaleMetadata)


class BrokerUnreachable(TaskflowError):
    """No broker answers, or none lets us in; the message says where and why."""

    retriable = True


class AccessDenied(BrokerUnreachable):
    """A broker is there and does not want us: TLS, SASL or ACL. Trying again changes nothing."""

    retriable = False


class NotAuthorized(AccessDenied):
    """An ACL is missing; `missing` are the rights that it must give. Nothing was lost: once it is
    there, a caller that asks again goes on."""

    def __init__(
        self, who: str, where: str, missing: Sequence[Right], role: Role | None = None
    ) -> None:
        """`who`: our principal; `where`: the brokers; `role`: what needs the rights."""
        self.missing = tuple(missing)
        acls = "`taskflow topics acls` prints the ACLs that each role needs"
        if role is not None:
            acls = f"`taskflow topics acls --role {role}` prints the ACLs that it needs"
        super().__init__(f"{who} lacks {_listed(map(str, missing))} at Kafka {where}; {acls}.")

    @classmethod
    def by(
        cls, settings: Settings, missing: Sequence[Right], role: Role | None = None
    ) -> "NotAuthorized":
        """Of who we are by our settings."""
        return cls(principal(settings), settings.bootstrap_servers, missing, role)


def _listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


class RequestFailed(TaskflowError):
    """A request to Kafka failed; the partition is taken over again and goes on from the topics."""

    retriable = True


class ReadFailed(RequestFailed):
    """A request to read topics failed; another consumer may do better."""


class PositionLost(ReadFailed):
    """The topic no longer has, or never had, the position that comes next."""

    retriable = False

    def __init__(self, topic: str, positions: Mapping[int, int]) -> None:
        """`positions`: by partition, the offsets that are not there."""
        self.positions = dict(positions)
        super().__init__(f"{topic} does not hold these offsets, by partition: {self.positions}.")


class HistoryStalled(TaskflowError):
    """Reading a topic back has come no further for too long; another consumer may."""

    retriable = True


class TopicsWrong(TaskflowError):
    """The topics are not what they must be, so nothing was processed."""


def explain(
    error: BaseException,
    settings: Settings,
    where: str | None = None,
    *,
    needs: Right | None = None,
) -> TaskflowError:
    """The sentence for an error of Kafka's or of the network; it holds no secret. `needs`: the
    right without which Kafka refuses what was asked; a read, if None."""
    where = settings.bootstrap_servers if where is None else where
    # A ConnectionError around a TLS or a name error hides what matters.
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return AccessDenied(
                f"The TLS handshake with {where} failed ({_tls(cause)}); see "
                "TASKFLOW_SECURITY_PROTOCOL and TASKFLOW_SSL_CAFILE."
            )
        if isinstance(cause, TokenUnavailable):
            return AccessDenied(
                f"{cause.args[0]}; Kafka at {where} refuses a connection without one."
            )
        if isinstance(cause, _NO_ENTRY):
            return AccessDenied(_no_entry(cause, settings, where))
        if isinstance(cause, _FORBIDDEN):
            return NotAuthorized.by(settings, _refused(cause, needs))
    return BrokerUnreachable(
        f"No Kafka broker answers at {where} ({_reason(error, settings)}); start one, with "
        "`taskflow broker` for instance, or name another in TASKFLOW_BOOTSTRAP_SERVERS."
    )


def _no_entry(error: KafkaError, settings: Settings, where: str) -> str:
    if settings.uses_oauth:
        return (
            f"Kafka at {where} does not take our OAuth token ({_status(error)}); see "
            "TASKFLOW_SASL_OAUTH_TOKEN_FILE and TASKFLOW_SASL_OAUTH_TOKEN_COMMAND."
        )
    user = f" as {settings.sasl_username!r}" if settings.uses_sasl else ""
    return (
        f"Kafka at {where} does not let us in{user} with {settings.sasl_mechanism} "
        f"({type(error).__name__}); see TASKFLOW_SASL_USERNAME, TASKFLOW_SASL_PASSWORD "
        "and TASKFLOW_SASL_MECHANISM."
    )


def _status(error: KafkaError) -> str:
    """The broker's word for a token, such as `invalid_token`."""
    said = error.args[0] if error.args else None
    return said if isinstance(said, str) and said.isidentifier() else type(error).__name__


def _refused(error: KafkaError, needs: Right | None) -> list[Right]:
    """The rights that are missing by an error of Kafka's, which names resources at most."""
    said = error.args[0] if error.args else ()
    if isinstance(said, TopicPartition):
        said = said.topic
    names = sorted({said} if isinstance(said, str) else map(str, said))
    if isinstance(error, TopicAuthorizationFailedError):
        operation = Operation.READ if needs is None else needs.operation
        found = [on_topic(operation, name) for name in names if _is_name(name)]
    elif isinstance(error, GroupAuthorizationFailedError):
        operation = Operation.READ if needs is None else needs.operation
        found = [on_group(operation, name) for name in names if _is_name(name)]
    elif isinstance(error, TransactionalIdAuthorizationFailed):
        ids = (Resource(ResourceKind.TRANSACTIONAL_ID, name) for name in names if _is_name(name))
        found = [Right(Operation.WRITE, one, "") for one in ids]
    else:
        found = []
    if found:
        return found
    return [needs or Right(Operation.CREATE, Resource(ResourceKind.CLUSTER, "kafka-cluster"), "")]


def _is_name(text: str) -> bool:
    """Whether it may name a resource: aiokafka also gives sentences."""
    return bool(text) and " " not in text


@contextmanager
def foreseen(doing: str, kind: type[RequestFailed] = RequestFailed) -> Iterator[None]:
    """Turn what aiokafka raises into `kind`; `doing`: as in "reading partition 3"."""
    try:
        yield
    except KafkaError as error:
        said = str(error).removeprefix(f"{type(error).__name__}: ")
        raise kind(f"{doing} failed: {type(error).__name__}: {said}") from error


@contextmanager
def positions_kept() -> Iterator[None]:
    """Turn what aiokafka raises where a topic does not hold a position into PositionLost."""
    try:
        yield
    except OffsetOutOfRangeError as error:
        lost: Mapping[TopicPartition, int] = error.args[0] if error.args else {}
        topics = ", ".join(sorted({tp.topic for tp in lost})) or "a topic"
        raise PositionLost(topics, {tp.partition: at for tp, at in lost.items()}) from error


@contextmanager
def authorized(connection: Mapping[str, Any], needs: Right) -> Iterator[None]:
    """Turn what Kafka raises where an ACL is missing into NotAuthorized, and nothing else.
    `connection`: the options of the client; `needs`: as of `explain`."""
    try:
        yield
    except _FORBIDDEN as error:
        missing = _refused(error, needs)
        where = connection["bootstrap_servers"]
        raise NotAuthorized(principal_of(connection), where, missing) from error


@contextmanager
def explained(settings: Settings, needs: Right | None = None) -> Iterator[None]:
    """Turn what Kafka and the network raise into BrokerUnreachable or AccessDenied. `needs`: as of
    `explain`."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        if isinstance(error, KafkaError | ssl.SSLError) or _is_of_the_network(error):
            raise explain(error, settings, needs=needs) from error
        raise


def _is_of_the_network(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verification: {error.verify_message}"
    return (error.reason or "not a TLS server").replace("_", " ").lower()


def _reason(error: BaseException, settings: Settings) -> str:
    """Why, in Kafka's or the system's words."""
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, TimeoutError | KafkaTimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno).lower()
    if isinstance(error, OSError) and "Multiple exceptions" in str(error):
        return os.strerror(errno.ECONNREFUSED).lower()  # both of localhost's addresses
    if isinstance(error, (*_SILENCE, ConnectionError)):
        return f"it closed the connection; does the listener speak {settings.security_protocol}?"
    return type(error).__name__
