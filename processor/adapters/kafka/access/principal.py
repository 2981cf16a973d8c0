"""Name the principal under which Kafka knows this process."""

from collections.abc import Mapping
from typing import Any

from processor.adapters.kafka.access.oauth import subject_of
from processor.settings import Settings


def principal(settings: Settings) -> str:
    """As ACLs name it, such as `User:alice`.

    A broker decides that, and no client can ask for it: this is what it makes of our credentials
    unless it has rules of its own. Of a client certificate it takes the subject, of an OAuth token
    the claim `sub`.
    """
    if settings.uses_oauth:
        subject = subject_of(settings)
        return "the principal of our OAuth token" if subject is None else f"User:{subject}"
    if settings.uses_sasl:
        return f"User:{settings.sasl_username}"
    if settings.uses_ssl and settings.ssl_certfile is not None:
        return f"the principal of the certificate {str(settings.ssl_certfile)!r}"
    return "User:ANONYMOUS"


def principal_of(connection: Mapping[str, Any]) -> str:
    """The same by the options of a client of aiokafka, as far as they name it."""
    provider = connection.get("sasl_oauth_token_provider")
    user = connection.get("sasl_plain_username") if provider is None else provider.subject
    if user is not None:
        return f"User:{user}"
    return "our principal" if connection["security_protocol"] != "PLAINTEXT" else "User:ANONYMOUS"
