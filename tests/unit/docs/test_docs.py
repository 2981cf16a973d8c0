"""The documentation names every setting with its default, every metric, and leads somewhere."""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from processor.settings import VARIABLES, Settings, load_settings
from processor.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "processor" / "docs"
LINK = re.compile(r"\]\((?!https?://)([^) ]+)\)")


def rows(page: str, prefix: str) -> dict[str, list[str]]:
    """The cells behind the first, of the tables' rows whose first cell is a code of `prefix`."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (DOCS / page).read_text("utf-8").splitlines()
        if line.startswith(f"| `{prefix}")
    ]
    names = [cells[0].strip("`") for cells in found]
    assert len(set(names)) == len(names), "a row stands there twice"
    return {name: cells[1:] for name, cells in zip(names, found, strict=True)}


def test_every_setting_stands_there_with_its_default() -> None:
    settings = rows("settings.md", "TASKFLOW_")
    assert list(settings) == list(VARIABLES)
    for name, (default, meaning) in settings.items():
        assert meaning
        if default.startswith("`"):
            assert load_settings({name: default.strip("`")}) == Settings(), name
        else:
            info = VARIABLES[name]
            assert not info.default or info.default_factory is not None, name


def test_every_metric_stands_there() -> None:
    def shown(metric: Metric) -> str:
        return f"{metric.name}_total" if metric.type == "counter" else metric.name

    assert rows("operating.md", "taskflow_").keys() == {
        shown(metric) for metric in Metrics().registry.collect()
    }


ANCHOR = re.compile(r"[^\w\- ]")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and those that it sets itself."""
    text = page.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    made = {ANCHOR.sub("", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([\w-]+)">', text))


PAGES = sorted(
    path
    for pattern in ("*.md", ".github/*.md", "processor/**/*.md", "schemas/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), target


def test_the_readme_fits_on_three_screens() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_figures_stand_with_the_machine_that_they_were_measured_on() -> None:
    figures = (DOCS / "figures.md").read_text("utf-8")

    assert "make bench" in figures
    assert "commands/s" in figures
    assert "Measured on" in figures
