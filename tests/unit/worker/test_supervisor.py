"""One worker as several processes: what each is given, and what they say together."""

from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from processor.cli.main import WRONG_USE, main
from processor.settings import Address, Settings
from processor.telemetry.metrics import Metrics
from processor.worker.supervisor import environment_of, merged_metrics, merged_report

NOTHING: Mapping[str, str] = {}


def report(
    *partitions: int, ready: bool = True, said: Mapping[str, str] = NOTHING
) -> dict[str, object]:
    about = {str(n): {"lag": n} for n in partitions}
    nothing = {"denied": None, "missing": None}
    return {"ready": ready, "joined": True, **nothing, **said, "partitions": about}


def test_each_process_has_its_share_of_the_cache_a_port_and_a_name() -> None:
    settings = Settings(flow_cache_bytes=3 * 2**20, instance_id="w", http=Address("0.0.0.0", 80))
    seen = environment_of(1, 2, settings, {"TASKFLOW_HTTP": "0.0.0.0:80", "HOME": "/root"})
    assert seen == {
        "HOME": "/root",
        "TASKFLOW_HTTP": "127.0.0.1:0",
        "TASKFLOW_FLOW_CACHE_BYTES": str(3 * 2**19),
        "TASKFLOW_INSTANCE_ID": "w-1",
    }


def test_without_http_and_a_name_they_have_neither_and_a_cache_of_what_is_allowed_at_least() -> (
    None
):
    settings = Settings(flow_cache_bytes=2**20, http=None)
    assert environment_of(0, 8, settings, {}) == {
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_FLOW_CACHE_BYTES": str(2**20),
    }


def test_they_are_ready_when_all_are_and_each_partition_stands_once() -> None:
    both = merged_report([report(10, 3), report(2)])
    assert both["ready"] is True
    assert list(both["partitions"]) == ["2", "3", "10"]


@pytest.mark.parametrize("other", [None, report(1, ready=False)])
def test_they_are_not_ready_while_one_is_not(other: dict[str, object] | None) -> None:
    assert merged_report([report(0), other])["ready"] is False


@pytest.mark.parametrize("word", ["denied", "missing"])
def test_what_one_lacks_is_said_of_all(word: str) -> None:
    said = "User:w lacks Read on topic t.audit."
    assert merged_report([report(0), report(1, said={word: said}), None])[word] == said
    assert merged_report([report(0), report(1)])[word] is None


def test_metrics_keep_their_process() -> None:
    texts = {}
    for index, events in enumerate((3, 4)):
        metrics = Metrics()
        metrics.events.inc(events)
        metrics.batch_size.observe(5)
        metrics.commands.labels("cancel", "accepted", "").inc()
        texts[index] = metrics.text().decode()

    merged = list(text_string_to_metric_families(merged_metrics(texts).decode()))

    alone = list(text_string_to_metric_families(texts[0]))
    assert [(f.name, f.type) for f in merged] == [(f.name, f.type) for f in alone]
    assert sum(len(f.samples) for f in merged) == 2 * sum(len(f.samples) for f in alone)
    (events_total,) = (f for f in merged if f.name == "taskflow_events")
    totals = {
        s.labels["process"]: s.value for s in events_total.samples if s.name.endswith("_total")
    }
    assert totals == {"0": 3, "1": 4}


def test_a_standby_wants_a_worker_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TASKFLOW_STANDBY", "true")
    assert main(["worker", "--processes", "2"]) == WRONG_USE
    assert "state directory of its own" in capsys.readouterr().err
