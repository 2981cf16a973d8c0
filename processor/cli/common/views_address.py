"""Read the address of views from the command line."""

from urllib.parse import urlsplit

from processor.cli.common.runner import WrongUse
from processor.client.http.views_client import own_views_url
from processor.settings import Settings


def views_url(settings: Settings, given: str | None = None) -> str:
    """Where views are: as `given`, `host:port` or a URL, or where ours would listen. Raises
    WrongUse."""
    if given is None:
        return own_views_url(settings)
    url = given if "://" in given else f"http://{given}"
    parts = urlsplit(url)
    try:
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment:
        raise WrongUse(f"--views is {given!r}, which is no address such as http://127.0.0.1:8901.")
    return url.rstrip("/")
