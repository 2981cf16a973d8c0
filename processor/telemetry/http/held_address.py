"""Hold an address for a server that starts later."""

import socket

from processor.settings import Address
from processor.telemetry.http.server import AddressInUse


def held(address: Address, otherwise: str) -> socket.socket:
    """Listen on `address` before a server can, so that no other program takes it meanwhile.

    Close the socket right before the server starts. Raises AddressInUse; `otherwise`: what to set
    then, and to what.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        holder = socket.socket(family, kind, protocol)
        try:
            # As the server does: a port in TIME_WAIT is free.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(where)
            holder.listen()
        except BaseException:
            holder.close()
            raise
    except OSError as error:
        raise AddressInUse(
            f"Cannot listen on {address} ({error.strerror or error}); set {otherwise}."
        ) from None
    return holder
