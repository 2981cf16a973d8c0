"""One trace from a producer through a real worker to the events, as a collector receives it."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from processor.client import AuditStream, FlowClient
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.worker import running_worker


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP collector: its address, and the spans that it was sent."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert names["service.name"] == "taskflow-worker"
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


async def test_one_trace_from_the_producer_to_the_events(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        state_dir=tmp_path / "state",
        http=None,
    )
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    flow_id = str(uuid4())
    with collector() as (endpoint, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        async with (
            running_worker(settings),
            FlowClient(settings, tracer_provider=provider) as client,
        ):
            await client.send(
                {
                    "kind": "create_mirrored",
                    "flow_id": flow_id,
                    "issued_by": "me",
                    "controller_id": "traces",
                    "goal": "be followed",
                    "requester_origin": "test",
                }
            )
    async with AuditStream(settings, follow=False) as stream:
        events = [record async for record in stream.records()]

    (send,) = exporter.get_finished_spans()
    trace_id, sent_id = send.context.trace_id, send.context.span_id
    spans_by_name = {span.name: span for span in spans}
    process = spans_by_name[f"process {prefix}.commands"]
    assert set(spans_by_name) == {process.name, "decide", "commit"}
    assert all(span.trace_id == trace_id.to_bytes(16, "big") for span in spans)
    assert process.parent_span_id == sent_id.to_bytes(8, "big")
    assert (
        spans_by_name["decide"].parent_span_id
        == spans_by_name["commit"].parent_span_id
        == process.span_id
    )
    assert (
        spans_by_name["decide"].end_time_unix_nano == spans_by_name["commit"].start_time_unix_nano
    )
    assert [record.event.kind for record in events] == ["created", "started"]
    for record in events:
        assert record.traceparent is not None
        assert f"{trace_id:032x}-{sent_id:016x}" in record.traceparent
