"""Alerts and dashboard ask for metrics, labels and values that exist; logs use the names that are
promised."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import promql_parser as promql
import pytest
import yaml

from processor.contract.commands import Command
from processor.contract.outcomes import Code, Verdict
from processor.engine.batch import StepTally
from processor.outbox.metrics import OutboxMetrics
from processor.outbox.rows import REFUSED, UNKNOWN
from processor.signals.metrics import SignalMetrics
from processor.sink.metrics import SinkMetrics
from processor.telemetry.bulk_histogram import BulkHistogram
from processor.telemetry.exposition import Exposed
from processor.telemetry.metrics import Metrics
from processor.views.metrics import ViewMetrics

ROOT = Path(__file__).parents[3]
HERE = ROOT / "processor" / "telemetry"
README = (HERE / "README.md").read_text("utf-8")
RULES = [
    rule
    for group in yaml.safe_load((HERE / "alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
BOARD = json.loads((HERE / "dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
VALUES: Mapping[str, set[str]] = {
    "verdict": {str(verdict) for verdict in Verdict} | {REFUSED, UNKNOWN},
    "code": {str(code) for code in Code} | {""},
    "kind": {str(model.model_fields["kind"].default) for model in get_args(Command)} | {"unknown"},
}


COLLECTORS = [
    collector
    for part in (Metrics(), ViewMetrics(), OutboxMetrics(), SignalMetrics())
    for collector in part.registry._collector_to_names
]


def series() -> dict[str, set[str]]:
    """The names that a query can ask for, with their labels."""
    found: dict[str, set[str]] = {}
    for collector in COLLECTORS:
        labels = (
            {collector.label}
            if isinstance(collector, BulkHistogram)
            else set(collector._labelnames)  # type: ignore[attr-defined]
        )
        for metric in collector.collect():
            endings = {
                "counter": [("_total", labels)],
                "gauge": [("", labels)],
                "histogram": [("_bucket", labels | {"le"}), ("_sum", labels), ("_count", labels)],
            }[metric.type]
            found |= {metric.name + ending: names | SCRAPED for ending, names in endings}
    return found


SERIES = series()


def problems(expression: str) -> Iterator[str]:
    """What is wrong with a query, by the metrics that exist."""
    tree = promql.parse(re.sub(r"\$__(rate_)?interval", "5m", expression))
    labels: set[str] = set()
    grouped: set[str] = set()

    def enter(node: Any) -> bool:
        match node:
            case promql.VectorSelector(name=str(name)):
                asked = {matcher.name: matcher for matcher in node.matchers.matchers}
                if name not in SERIES:
                    unknown.append(f"no metric {name}")
                    return True
                labels.update(SERIES[name])
                for label, matcher in asked.items():
                    if label not in SERIES[name]:
                        unknown.append(f"{name} has no label {label}")
                    elif label in VALUES and not set(matcher.value.split("|")) <= VALUES[label]:
                        unknown.append(f"{label} is never {matcher.value}")
            case promql.AggregateExpr() if node.modifier is not None:
                grouped.update(node.modifier.labels)
        return True

    unknown: list[str] = []
    promql.walk(tree, enter, lambda _: True)
    yield from unknown
    if not labels:
        yield "it asks for no metric"
    if foreign := grouped - labels:
        yield f"nothing has the labels {sorted(foreign)}"


def queries() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


@pytest.mark.parametrize(("name", "expression"), [*queries()], ids=lambda text: text[:40])
def test_a_query_asks_for_what_exists(name: str, expression: str) -> None:
    assert list(problems(expression)) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("taskflow_lags_records > 3", "no metric"),
        ("sum(rate(taskflow_commands[5m]))", "no metric"),
        ('taskflow_lag_records{topic="x"}', "no label"),
        ('taskflow_commands_total{verdict="acepted"}', "is never"),
        ("sum by (shard) (taskflow_lag_records)", "nothing has the labels"),
        ("1 > bool 0", "no metric"),
        ("absent(taskflow_lag_records) or max(taskflow_lag)", "no metric taskflow_lag"),
        ("histogram_quantile(0.9, rate(taskflow_commit_second_bucket[5m]))", "no metric"),
    ],
)
def test_a_query_with_a_mistake_is_found(expression: str, problem: str) -> None:
    assert problem in " ".join(problems(expression))


FIRSTS = [
    (rule["alert"], name, dict(re.findall(r'(\w+)="(\w+)"', matchers)))
    for rule in RULES
    if rule["expr"].endswith("> 0")
    for name, matchers in re.findall(r"increase\((\w+)({.*?})?\[", rule["expr"])
]
"""The alerts that ring at the first time, and what they count."""


@pytest.mark.parametrize(("alert", "name", "wanted"), FIRSTS)
def test_the_first_time_that_something_happens_is_an_increase(
    alert: str, name: str, wanted: Mapping[str, str]
) -> None:
    """A series that begins with 1 has none for Prometheus. Those of steps begin with their task."""
    worker, outbox, signals = Metrics(), OutboxMetrics(), SignalMetrics()
    tally = StepTally()
    tally.events = {("classify", "scheduled"): 1}
    worker.steps.observe(tally)
    families = chain(*(part.registry.collect() for part in (worker, outbox, signals)))
    samples = [one for family in families for one in family.samples if one.name == name]
    assert any(wanted.items() <= one.labels.items() and one.value == 0 for one in samples)


def test_what_is_no_query_is_found() -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        list(problems("sum by (rate("))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]
    of_a_label = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["description"]))
    assert of_a_label <= set().union(*SERIES.values())


def test_the_runbook_has_the_pages_that_are_named() -> None:
    runbook = (ROOT / "processor" / "docs" / "runbook.md").read_text("utf-8")
    headings = re.findall(r"^#+ (.*)$", runbook, re.MULTILINE)
    pages = {heading.lower().replace(" ", "-") for heading in headings}
    named = re.findall(r"\(\.\./docs/runbook\.md#([\w-]+)\)", README)
    assert named
    assert set(named) <= pages


def test_names_are_given_once() -> None:
    names = [rule["alert"] for rule in RULES]
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(names)) == len(names)
    assert len(set(ids)) == len(ids)


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(expression for _, expression in queries())
    for collector in COLLECTORS:
        for metric in collector.collect():
            if metric.name != "taskflow_standby_partitions":
                assert metric.name in shown


@pytest.mark.parametrize(
    ("part", "made"),
    [
        ("view", ViewMetrics),
        ("sink", SinkMetrics),
        ("outbox", OutboxMetrics),
        ("signals", SignalMetrics),
    ],
)
def test_every_metric_of_the_other_services_is_explained(part: str, made: type[Exposed]) -> None:
    rows = re.findall(rf"^\| `(taskflow_{part}_\w+)` \|", README, re.MULTILINE)
    endings = {"counter": "_total"}
    metrics = made().registry.collect()
    assert sorted(rows) == sorted(one.name + endings.get(one.type, "") for one in metrics)


LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "bind"}
PYTHONS = {"exc_info", "stack_info", "extra"}
"""What Python's own logging takes; a traceback becomes `exception`."""


def documented() -> Iterator[tuple[str, str]]:
    """The names of the fields that our logs use, with where."""
    for path in sorted((ROOT / "processor").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            log = node.func.value
            name = log.id if isinstance(log, ast.Name) else getattr(log, "attr", "")
            if node.func.attr in LEVELS and name in {"log", "_log"}:
                for keyword in node.keywords:
                    # `**position._asdict()` are fields of a Position.
                    names = keyword.arg or "commands control next_event_id"
                    yield from ((field, path.name) for field in names.split())


PROMISED = {
    name
    for cell in re.findall(r"^\| (`.+?) \|", README.partition("## Logs")[2], re.MULTILINE)
    for name in re.findall(r"`(\w+)`", cell)
}


def test_logs_use_the_names_that_are_promised() -> None:
    unknown = {field: where for field, where in documented() if field not in PROMISED | PYTHONS}
    assert unknown == {}, "processor/telemetry/README.md has the names: take one, or add one"


def test_no_name_is_promised_that_nobody_uses() -> None:
    always = {"at", "level", "logger", "message", "exception"}
    assert PROMISED - always == {field for field, _ in documented()} - PYTHONS
