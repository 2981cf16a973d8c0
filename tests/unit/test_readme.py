"""The README names every setting with its default, and every metric."""

import re
from pathlib import Path

from prometheus_client.metrics_core import Metric

from processor.settings import VARIABLES, Settings, load_settings
from processor.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def rows(prefix: str) -> dict[str, list[str]]:
    """The cells behind the first, of the tables' rows whose first cell is a code of `prefix`."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith(f"| `{prefix}")
    ]
    names = [cells[0].strip("`") for cells in found]
    assert len(set(names)) == len(names), "a row stands there twice"
    return {name: cells[1:] for name, cells in zip(names, found, strict=True)}


def test_every_setting_stands_there_with_its_default():
    settings = rows("TASKFLOW_")
    assert list(settings) == list(VARIABLES)
    for name, (default, meaning) in settings.items():
        assert meaning
        if default.startswith("`"):
            assert load_settings({name: default.strip("`")}) == Settings(), name
        else:
            info = VARIABLES[name]
            assert not info.default or info.default_factory is not None, name


def test_every_metric_stands_there():
    def shown(metric: Metric) -> str:
        return f"{metric.name}_total" if metric.type == "counter" else metric.name

    assert rows("taskflow_").keys() == {shown(metric) for metric in Metrics().registry.collect()}


def test_every_link_leads_somewhere():
    for page in (
        ROOT / "README.md",
        *(
            ROOT / room / "README.md"
            for room in ("processor", "processor/observability", "processor/ops", "schemas")
        ),
    ):
        for target in LINK.findall(page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_figures_stand_with_the_machine_that_they_were_measured_on():
    figures = README.partition("## Figures")[2].partition("\n## ")[0]

    assert "make bench" in figures
    assert "commands/s" in figures
    assert "Measured on" in figures
