"""Limits of an HTTP server's clients: connections, time, bytes."""

import resource
from dataclasses import dataclass
from typing import Final

DESCRIPTORS_SHARE: Final = 4
"""One in so many of the process's file descriptors is for clients; Kafka and SQLite need others."""
_CONNECTIONS_MIN: Final = 16


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Times are in seconds, sizes in bytes."""

    connections: int
    """Open at the same time. For a new one beyond them, an idle one is closed."""
    body_bytes: int = 0
    """Of a request."""
    line_bytes: int = 8190
    """Of a request line, and of one header."""
    head_bytes: int = 32 * 1024
    """Of all headers of a request together with its line."""
    headers: int = 100
    head_s: float = 10.0
    """From a request's first byte, or the connection's beginning, to the end of its headers."""
    body_s: float = 20.0
    """From the end of the headers to the end of the body."""
    idle_s: float = 75.0
    """Between two requests of a connection."""
    linger_s: float = 1.0
    """For how long a body that is not wanted is read, so that the client gets to the response."""
    stall_s: float = 20.0
    """For how long a response may wait for a client that does not read …"""
    stall_bytes_s: int = 32 * 1024
    """… and a second longer for so many bytes."""
    unsent_bytes: int = 48 * 1024 * 1024
    """Of all responses that wait for their clients. Beyond them the longest wait is ended."""

    @property
    def connections_now(self) -> int:
        """`connections`, or fewer where the process has few descriptors."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return self.connections
        return min(self.connections, max(soft // DESCRIPTORS_SHARE, _CONNECTIONS_MIN))
