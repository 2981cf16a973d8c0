"""The folds of the sources: `signals` and `audit` into `signals.log`, and the log into matches."""

from collections.abc import Sequence

import orjson

from processor.client.signals.signal_reader import InvalidSignal, read_signal
from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.headers import Headers
from processor.contract.signals import INVALID, SignalMessage
from processor.contract.topics import SignalTopics
from processor.engine.batch import Outgoing
from processor.engine.batch_outcomes import dead_letter
from processor.engine.codec import Draft, Record, traceparent
from processor.engine.encoding import encode
from processor.engine.partitioner import hashed_partition
from processor.signals.facts import (
    AuditRead,
    SignalFact,
    SignalReceived,
    WaitKey,
    decode_fact,
    encode_fact,
)
from processor.signals.matcher import (
    SIGNAL_ENTRY,
    WAIT_ENTRY,
    Delivery,
    Matcher,
    UnclaimedSignal,
)
from processor.signals.metrics import SignalMetrics
from processor.signals.partition import FoldOutput
from processor.signals.wait_index import FLOW_ENTRY, KeyedFact, WaitIndex


class SignalIntake:
    """Fold `signals` into `signals.log`: each signal goes to the partition of its topic and
    correlation id, whatever its key is. A record that is not a signal becomes a dead letter."""

    prefixes: tuple[bytes, ...] = ()

    def __init__(self, partitions: int, metrics: SignalMetrics) -> None:
        """`partitions`: of `signals.log`."""
        self._partitions = partitions
        self._metrics = metrics
        self._output = FoldOutput()

    def load(self, entry_key: bytes, value: bytes) -> None:
        raise AssertionError("the intake has no state")

    def loaded(self) -> None:
        pass

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                signal = read_signal(record.value)
            except InvalidSignal as error:
                self._metrics.dead_letters.labels(INVALID).inc()
                self._output.dead_letters.append(dead_letter(record, INVALID, str(error)))
                continue
            fact = SignalReceived(
                signal.id,
                record.timestamp,
                record.partition,
                record.offset,
                signal.payload,
                _trace_of(record.headers),
            )
            key = WaitKey(signal.topic, signal.correlation_id)
            _put(self._output, self._partitions, (key, fact))

    def take_output(self) -> FoldOutput:
        output, self._output = self._output, FoldOutput()
        return output


class WaitIntake:
    """Fold `audit` into `signals.log`: where waits for external events begin, change and end."""

    prefixes: tuple[bytes, ...] = (FLOW_ENTRY,)

    def __init__(self, partition: int, partitions: int) -> None:
        """`partition`: of `audit`; `partitions`: of `signals.log`."""
        self.read_to_ms = 0
        """All events that were appended before this time are folded."""
        self._partition = partition
        self._partitions = partitions
        self._index = WaitIndex()
        self._facts: list[KeyedFact] = []

    def load(self, entry_key: bytes, value: bytes) -> None:
        self._index.load(entry_key, value)

    def loaded(self) -> None:
        pass

    def apply(self, records: Sequence[Record]) -> None:
        events = [(orjson.loads(record.value or b""), record.timestamp) for record in records]
        self._facts += self._index.apply(events)
        self.read_to_ms = max(self.read_to_ms, records[-1].timestamp)

    def read_up_to(self, at_ms: int) -> dict[int, list[Outgoing]]:
        """Return a record for each partition of the log that says how far `audit` is read."""
        self.read_to_ms = max(self.read_to_ms, at_ms)
        value = encode_fact(AuditRead(self._partition, self.read_to_ms))
        return {partition: [Outgoing(None, value, [])] for partition in range(self._partitions)}

    def take_output(self) -> FoldOutput:
        facts, self._facts = self._facts, []
        output = FoldOutput(state=self._index.take_changes())
        for fact in facts:
            _put(output, self._partitions, fact)
        return output


class MatchFold:
    """Fold `signals.log` into matches, and dead letters of signals that no flow takes in time."""

    prefixes: tuple[bytes, ...] = (SIGNAL_ENTRY, WAIT_ENTRY)

    def __init__(
        self, topics: SignalTopics, audit_partitions: int, ttl_ms: int, metrics: SignalMetrics
    ) -> None:
        self.matcher = Matcher(audit_partitions, ttl_ms)
        self._topics = topics
        self._metrics = metrics

    def load(self, entry_key: bytes, value: bytes) -> None:
        self.matcher.load(entry_key, value)

    def loaded(self) -> None:
        self.matcher.loaded()

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            key, fact = decode_fact(record.key, record.value)
            new = self.matcher.apply(key, fact)
            if isinstance(fact, SignalReceived):
                (self._metrics.received if new else self._metrics.repeated).inc()

    def refuse(self, delivery: Delivery, why: str) -> None:
        """As `Matcher.refuse`."""
        self.matcher.refuse(delivery, why)

    def take_output(self) -> FoldOutput:
        state, unclaimed = self.matcher.take_changes()
        for one in unclaimed:
            self._metrics.dead_letters.labels(one.code).inc()
        return FoldOutput(
            state=state, dead_letters=[unclaimed_record(self._topics, one) for one in unclaimed]
        )


def unclaimed_record(topics: SignalTopics, unclaimed: UnclaimedSignal) -> Outgoing:
    """The dead letter of a signal: its value can be sent to `signals` again."""
    signal = unclaimed.signal
    trace = signal.traceparent
    record = Draft(
        unclaimed.key.encoded(),
        encode_signal(unclaimed.key, signal),
        topics.signals,
        signal.partition,
        signal.offset,
        signal.at_ms,
        [] if trace is None else [(TRACEPARENT_HEADER, trace.encode())],
    )
    return dead_letter(record, unclaimed.code, unclaimed.message)


def signal_of(key: WaitKey, received: SignalReceived) -> SignalMessage:
    """The signal as it was sent."""
    return SignalMessage(
        id=received.id,
        topic=key.topic,
        correlation_id=key.correlation_id,
        payload=received.payload,
    )


def encode_signal(key: WaitKey, received: SignalReceived) -> bytes:
    """The value of the signal's record."""
    return encode(signal_of(key, received).model_dump(exclude_none=True))


def _put(output: FoldOutput, partitions: int, keyed: tuple[WaitKey, SignalFact]) -> None:
    key, fact = keyed
    encoded = key.encoded()
    records = output.log.setdefault(hashed_partition(encoded, partitions), [])
    records.append(Outgoing(encoded, encode_fact(fact), []))


def _trace_of(headers: Headers) -> str | None:
    for _, value in traceparent(headers):
        return None if value is None else value.decode(errors="replace")
    return None
