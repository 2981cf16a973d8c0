"""What Kafka can keep us from, each in one sentence."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

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
    SaslAuthenticationFailed,
    StaleMetadata,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
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


class HistoryStalled(TaskflowError):
    """Reading a topic back has come no further for too long; another consumer may."""

    retriable = True


class TopicsWrong(TaskflowError):
    """The topics are not what they must be, so nothing was processed."""


def explain(error: BaseException, settings: Settings, where: str | None = None) -> TaskflowError:
    """The sentence for an error of Kafka's or of the network; it holds no secret."""
    where = settings.bootstrap_servers if where is None else where
    user = f" as {settings.sasl_username!r}" if settings.uses_sasl else ""
    # A ConnectionError around a TLS or a name error hides what matters.
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return AccessDenied(
                f"The TLS handshake with {where} failed ({_tls(cause)}); see "
                "TASKFLOW_SECURITY_PROTOCOL and TASKFLOW_SSL_CAFILE."
            )
        if isinstance(cause, _NO_ENTRY):
            return AccessDenied(
                f"Kafka at {where} does not let us in{user} with {settings.sasl_mechanism} "
                f"({type(cause).__name__}); see TASKFLOW_SASL_USERNAME, TASKFLOW_SASL_PASSWORD "
                "and TASKFLOW_SASL_MECHANISM."
            )
        if isinstance(cause, _FORBIDDEN):
            about = f" {cause.args[0]}" if cause.args and isinstance(cause.args[0], str) else ""
            return AccessDenied(
                f"Kafka at {where} does not allow this{user} ({type(cause).__name__}{about}); "
                "an ACL is missing."
            )
    return BrokerUnreachable(
        f"No Kafka broker answers at {where} ({_reason(error, settings)}); start one, with "
        "`taskflow broker` for instance, or name another in TASKFLOW_BOOTSTRAP_SERVERS."
    )


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn what Kafka and the network raise into BrokerUnreachable or AccessDenied."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        if isinstance(error, KafkaError | ssl.SSLError) or _is_of_the_network(error):
            raise explain(error, settings) from error
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
