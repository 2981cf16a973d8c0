"""The host names that a server answers for, and the other sites that may send it requests.

A page of another site can make a browser send requests here. It reads the answers if its own name
is made to resolve to this machine (DNS rebinding): then the request names that host. The page of a
site with an IP address for a name cannot do so.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from aiohttp import web

from processor.telemetry.http.problem import ProblemError

ANY: Final = "*"
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?P<authority>[^/?#]*)")
_OWN_PAGES: Final = frozenset({"same-origin", "none"})
"""Sec-Fetch-Site of a request that a page of ours made, or a person."""


class HostPolicy:
    """Lets in requests that name this server, and come from no other site.

    `allowed`: names, IP addresses, `*.example.org` for all names below, or `*`. Always allowed are
    the names of the loopback interface and the address that the connection came to.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        names = {_normal(name) for name in allowed}
        self._any = ANY in names
        self._names = {name for name in names if not name.startswith("*.")}
        self._suffixes = tuple(name.removeprefix(ANY) for name in names if name.startswith("*."))

    def allow(self, authority: str) -> None:
        """Answer for the host of `authority` (host, or host:port) as well."""
        if (host := host_of(authority)) is not None:
            self._names.add(host)

    def check(self, request: web.BaseRequest) -> None:
        """Raises ProblemError: `misdirected` for another host, `forbidden` for another site."""
        local = _local_address(request)
        given = [request.headers.get("Host", "")]
        if (absolute := _ABSOLUTE.match(request.raw_path)) is not None:
            given.append(absolute["authority"])  # it counts more than the header, by RFC 9112
        if not all(self._serves(host_of(authority), local) for authority in given):
            raise ProblemError(
                "misdirected",
                "Ask by an address of this server, or add the host to TASKFLOW_HTTP_HOSTS.",
            )
        if not self._own_site(request):
            raise ProblemError("forbidden", "A page of another site may not ask this server.")

    def _serves(self, host: str | None, local: str | None) -> bool:
        if host is None:
            return False
        return (
            self._any
            or host == local
            or host in self._names
            or host.endswith(self._suffixes)
            or is_loopback(host)
        )

    def _own_site(self, request: web.BaseRequest) -> bool:
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None and site not in _OWN_PAGES:
            # Following a link to the page is no request of the other site's script.
            return _opens_a_page(request)
        origin = request.headers.get("Origin")
        if origin is None:
            return True
        asked = _ABSOLUTE.fullmatch(origin)
        if asked is None:
            return False
        if asked["authority"].lower() == request.headers.get("Host", "").lower():
            return True
        # A proxy may ask us by another name than the browser asked it.
        host = host_of(asked["authority"])
        return site == "same-origin" and self._serves(host, None)


def host_of(authority: str) -> str | None:
    """The host of `host` or `host:port`, in one spelling; None if it is neither."""
    match = _AUTHORITY.fullmatch(authority)
    return None if match is None else _normal(match["host"])


def is_loopback(host: str) -> bool:
    """Whether the host, as `host_of` gives it, is one of the loopback interface."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761: no other machine has these
        return True
    address = _ip(host)
    return address is not None and address.is_loopback


def _opens_a_page(request: web.BaseRequest) -> bool:
    return (
        request.method == "GET"
        and request.rel_url.raw_path == "/"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
    )


def _local_address(request: web.BaseRequest) -> str | None:
    """The IP address that the connection came to, which is how probes name a pod."""
    transport = request.transport
    name = None if transport is None else transport.get_extra_info("sockname")
    return _normal(str(name[0])) if isinstance(name, tuple) else None


def _normal(host: str) -> str:
    host = host.strip().strip("[]").lower()
    host = host.removesuffix(".")
    address = _ip(host)
    return host if address is None else str(address)


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
