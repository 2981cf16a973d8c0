"""axe-core, which finds what assistive technology stumbles over; from npm, for tests alone."""

from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import Page

VERSION: Final = "4.10.3"
HOME: Final = Path.home() / ".cache" / "taskflow" / "axe"
_SCRIPT: Final = HOME / "node_modules" / "axe-core" / "axe.min.js"

needs_axe = pytest.mark.skipif(
    not _SCRIPT.exists(),
    reason=f"there is no axe-core here (npm install --prefix {HOME} axe-core@{VERSION})",
)


async def violations(page: Page) -> list[str]:
    """What axe-core finds on the page as it is: rule, and where."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(_SCRIPT.read_text("utf-8"))
    found: list[dict[str, Any]] = await page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{one['id']}: {', '.join(' '.join(node['target']) for node in one['nodes'][:3])}"
        for one in found
    ]
