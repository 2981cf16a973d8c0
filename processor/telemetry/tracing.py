"""Trace a command with OpenTelemetry, from its producer through its decision to its commit.

The context travels in the `traceparent` header, which everything that a command causes carries on.
Only commands that were sampled where they come from get spans here, so that nothing is spent on
others. Nothing of OpenTelemetry is imported unless it is asked for.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from processor.contract.events import TRACEPARENT_HEADER
from processor.engine.batch import Decoded
from processor.engine.codec import Readable
from processor.errors import install_line

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

log = structlog.get_logger()

SCOPE: Final = "taskflow"
STOP_TIMEOUT_S: Final = 2.0
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class ProducerTraces:
    """A span for each command that a client writes, by the tracer provider of its program."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        from opentelemetry import trace

        self._tracer = trace.get_tracer(SCOPE, tracer_provider=provider)

    @contextmanager
    def sending(
        self, topic: str, key: bytes, command: Any, headers: list[tuple[str, bytes]]
    ) -> "Iterator[Span]":
        """A span around the writing of a command. Adds a `traceparent` to `headers` unless the
        caller has given one, which is then the span's parent."""
        from opentelemetry.trace import SpanKind

        given = dict(headers).get(TRACEPARENT_HEADER)
        with self._tracer.start_as_current_span(
            f"send {topic}",
            context=None if given is None else _context(given),
            kind=SpanKind.PRODUCER,
            attributes={
                **_messaging("send", topic),
                "messaging.message.id": command.command_id,
                "messaging.kafka.message.key": key.decode(),
                "taskflow.flow.id": command.flow_id,
                "taskflow.command.kind": command.kind,
            },
        ) as span:
            own = span.get_span_context()
            if given is None and own.is_valid:
                text = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
                headers.append((TRACEPARENT_HEADER, text.encode()))
            yield span

    @contextmanager
    def working(
        self, task: str, attempt: Mapping[str, Any], traceparent: str | None
    ) -> Iterator[None]:
        """A span around one attempt at a step; `attempt` has its names by attribute."""
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(
            f"step {task}",
            context=None if traceparent is None else _context(traceparent.encode()),
            kind=SpanKind.CONSUMER,
            attributes={f"taskflow.{name}": value for name, value in attempt.items()},
        ):
            yield

    @staticmethod
    def written(span: "Span", partition: int, offset: int | None) -> None:
        span.set_attribute("messaging.destination.partition.id", str(partition))
        if offset is not None:
            span.set_attribute("messaging.kafka.offset", offset)


def producer_traces(provider: "TracerProvider | None" = None) -> ProducerTraces | None:
    """By `provider`, or the program's own; None where that has not set up OpenTelemetry: it would
    have imported it."""
    if provider is None and "opentelemetry.sdk.trace" not in sys.modules:
        return None
    return ProducerTraces(provider)


class WorkerTraces:
    """Spans of what a worker decides: `process`, and within it `decide` and `commit`."""

    def __init__(self, provider: "TracerProvider", *, group_id: str) -> None:
        from opentelemetry import trace

        self._tracer: Tracer = trace.get_tracer(SCOPE, tracer_provider=provider)
        self._group_id = group_id

    def decided(
        self,
        traced: Sequence[tuple[Decoded, bytes]],
        count: int,
        *,
        began_ns: int,
        decided_ns: int,
        committed_ns: int,
    ) -> None:
        """Record a committed batch of `count` records: those that are `traced`, with their
        outcomes. Times are nanoseconds since 1970."""
        for item, outcome in traced:
            if (parent := _sampled_parent(item)) is not None:
                self._record(item, outcome, parent, (began_ns, decided_ns, committed_ns), count)

    def _record(
        self,
        item: Decoded,
        outcome: bytes,
        parent: "Context",
        times_ns: tuple[int, int, int],
        count: int,
    ) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        began_ns, decided_ns, committed_ns = times_ns
        record = item.record
        doc = orjson.loads(outcome)
        process = self._tracer.start_span(
            f"process {record.topic}",
            context=parent,
            kind=SpanKind.CONSUMER,
            start_time=began_ns,
            attributes={
                **_messaging("process", record.topic),
                "messaging.consumer.group.name": self._group_id,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                **_known("messaging.message.id", doc["command_id"]),
                **_known("messaging.kafka.message.key", doc["flow_id"]),
                **_known("taskflow.flow.id", doc["flow_id"]),
                **_known("taskflow.command.kind", doc["kind"]),
                **_known("taskflow.code", doc["code"]),
                "taskflow.verdict": doc["verdict"],
                "taskflow.event.ids": doc["event_ids"],
            },
        )
        if not isinstance(item, Readable) or doc["code"] == "internal_error":
            process.set_status(Status(StatusCode.ERROR, doc["message"]))
            process.set_attribute("error.type", doc["code"] or "_OTHER")
        inside = set_span_in_context(process)
        batch = {"messaging.batch.message_count": count}
        self._tracer.start_span(
            "decide", context=inside, start_time=began_ns, attributes=batch
        ).end(decided_ns)
        self._tracer.start_span(
            "commit",
            context=inside,
            start_time=decided_ns,
            attributes={"messaging.system": "kafka", **batch},
        ).end(committed_ns)
        process.end(committed_ns)


@contextmanager
def worker_traces(
    *, group_id: str, instance: str, environ: Mapping[str, str] | None = None
) -> Iterator[WorkerTraces | None]:
    """A worker's traces, sent by OTLP over HTTP to where the `OTEL_` variables say; None where
    they name no endpoint. Pending spans are sent at the end, within STOP_TIMEOUT_S."""
    environ = os.environ if environ is None else environ
    if not any(environ.get(name) for name in ENDPOINTS):
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(f"no traces: an endpoint is named, but not {install_line('otel')}")
        yield None
        return
    named = {"service.name": "taskflow-worker", "service.instance.id": instance}
    given = Resource.create().attributes
    if "unknown_service" not in str(given.get("service.name")):
        del named["service.name"]
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield WorkerTraces(provider, group_id=group_id)
    finally:
        # A collector that is away must not keep us; its thread ends with the process.
        stopping = threading.Thread(target=provider.shutdown, daemon=True)
        stopping.start()
        stopping.join(STOP_TIMEOUT_S)


def _messaging(operation: str, topic: str) -> dict[str, str]:
    """OpenTelemetry's semantic conventions for messaging, 1.27 and later."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }


def _known(name: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}


def _sampled_parent(item: Decoded) -> "Context | None":
    for name, value in item.record.headers:
        if name == TRACEPARENT_HEADER and value is not None:
            found = _TRACEPARENT.fullmatch(value)
            if found is None or not int(found[3], 16) & 1:
                return None
            return _context(value)
    return None


def _context(traceparent: bytes) -> "Context | None":
    """A context whose span is the one that `traceparent` names; None if it names none."""
    from opentelemetry import trace

    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    trace_id, span_id, flags = (int(found[n], 16) for n in (1, 2, 3))
    context = trace.SpanContext(
        trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags)
    )
    if not context.is_valid:
        return None
    return trace.set_span_in_context(trace.NonRecordingSpan(context))
