"""Read addresses of services from the command line: of views, of a schema registry."""

from urllib.parse import SplitResult, urlsplit

from processor.cli.common.runner import WrongUse
from processor.client.http.views_client import own_views_url
from processor.settings import Settings


def http_address(url: str) -> SplitResult | None:
    """Split the URL of a service; None unless it is one of HTTP with a host and no query."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if fits and not parts.query and not parts.fragment else None


def views_url(settings: Settings, given: str | None = None) -> str:
    """Where views are: as `given`, `host:port` or a URL, or where ours would listen. Raises
    WrongUse."""
    if given is None:
        return own_views_url(settings)
    url = given if "://" in given else f"http://{given}"
    if http_address(url) is None:
        raise WrongUse(f"--views is {given!r}, which is no address such as http://127.0.0.1:8901.")
    return url.rstrip("/")
