"""Spans: told for commands that were sampled where they come from, and for no others."""

import sys
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from processor.client.preparation import prepare
from processor.contract.events import TRACEPARENT_HEADER
from processor.engine.codec import Draft, decode
from processor.errors import install_line
from processor.telemetry import tracing
from processor.telemetry.tracing import ProducerTraces, WorkerTraces, producer_traces, worker_traces

FLOW = "6f1f3a52-0000-4000-8000-000000000001"
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + b"00"
COMMAND = {"kind": "start_running", "flow_id": FLOW, "issued_by": "me"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


def decided(provider: TracerProvider, *headers: bytes | None, value: bytes | None = None) -> None:
    """A batch with one command for each of these `traceparent` headers."""
    prepared = prepare(COMMAND, now_ms=0, expires_after_ms=None)
    items = [
        decode(
            Draft(
                prepared.key,
                prepared.value if value is None else value,
                topic="taskflow.commands",
                partition=3,
                offset=17 + n,
                headers=() if header is None else ((TRACEPARENT_HEADER, header),),
            )
        )
        for n, header in enumerate(headers)
    ]
    doc = {
        "command_id": prepared.command.command_id,
        "flow_id": FLOW,
        "kind": "start_running",
        "verdict": "accepted" if value is None else "quarantined",
        "code": None if value is None else "malformed",
        "message": "So it is.",
        "event_ids": [5],
    }
    WorkerTraces(provider, group_id="workers").decided(
        [(item, orjson.dumps(doc)) for item in items],
        len(items),
        began_ns=1_000,
        decided_ns=2_000,
        committed_ns=5_000,
    )


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_sampled_command_is_told_from_poll_to_commit(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    decided(provider, PARENT)

    spans = by_name(exporter)
    process = spans["process taskflow.commands"]
    assert process.kind is SpanKind.CONSUMER
    assert process.parent is not None
    assert f"{process.parent.span_id:016x}".encode() in PARENT
    assert f"{process.context.trace_id:032x}".encode() in PARENT
    assert (process.start_time, process.end_time) == (1_000, 5_000)
    attributes = dict(process.attributes or {})
    assert attributes.pop("messaging.message.id")
    assert attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "taskflow.commands",
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "workers",
        "messaging.kafka.offset": 17,
        "messaging.kafka.message.key": FLOW,
        "taskflow.flow.id": FLOW,
        "taskflow.command.kind": "start_running",
        "taskflow.verdict": "accepted",
        "taskflow.event.ids": (5,),
    }
    for name, times in (("decide", (1_000, 2_000)), ("commit", (2_000, 5_000))):
        assert spans[name].parent == process.context
        assert (spans[name].start_time, spans[name].end_time) == times


def test_what_could_not_be_read_is_an_error(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    decided(provider, PARENT, value=b"{")

    process = by_name(exporter)["process taskflow.commands"]
    assert process.status.status_code is StatusCode.ERROR
    assert (process.attributes or {})["error.type"] == "malformed"


@pytest.mark.parametrize(
    "header",
    [None, UNSAMPLED, b"", b"garbage", b"\xff\xfe", b"ff" + PARENT[2:], PARENT.upper(),
     PARENT.replace(b"0af7651916cd43dd8448eb211c80319c", bytes(b"0" * 32))],
)  # fmt: skip
def test_nothing_is_told_of_other_commands(
    provider: TracerProvider, exporter: InMemorySpanExporter, header: bytes | None
) -> None:
    decided(provider, header)
    assert exporter.get_finished_spans() == ()


def send(provider: TracerProvider, headers: list[tuple[str, bytes]]) -> None:
    prepared = prepare(COMMAND, now_ms=0, expires_after_ms=None)
    traces = ProducerTraces(provider)
    topic = "taskflow.commands"
    with traces.sending(topic, prepared.key, prepared.command, headers) as span:
        traces.written(span, 2, 9)


def test_a_producer_puts_its_span_into_the_header(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    headers: list[tuple[str, bytes]] = []
    send(provider, headers)

    (span,) = exporter.get_finished_spans()
    assert span.kind is SpanKind.PRODUCER
    context = span.context
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert headers == [(TRACEPARENT_HEADER, expected.encode())]
    attributes: dict[str, Any] = dict(span.attributes or {})
    assert attributes["messaging.operation.type"] == "send"
    assert attributes["messaging.destination.partition.id"] == "2"
    assert attributes["messaging.kafka.offset"] == 9


def test_a_header_that_was_given_is_left_as_it_is(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    headers = [(TRACEPARENT_HEADER, PARENT)]
    send(provider, headers)

    (span,) = exporter.get_finished_spans()
    assert headers == [(TRACEPARENT_HEADER, PARENT)]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}".encode() in PARENT


def test_a_program_without_opentelemetry_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.sdk.trace")
    assert producer_traces() is None


def test_a_worker_without_an_endpoint_has_no_traces() -> None:
    with worker_traces(group_id="g", instance="i", environ={}) as traces:
        assert traces is None


def test_a_worker_without_the_extra_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, exporter, None)
    endpoint = {tracing.ENDPOINTS[0]: "http://127.0.0.1:4318"}
    with capture_logs() as logs, worker_traces(group_id="g", instance="i", environ=endpoint) as it:
        assert it is None
    assert install_line("otel") in logs[0]["event"]
