"""Commands at a steady rate, whatever their answers take, and how long each answer took.

For any program that reads commands from one topic and commits an answer to each to another. It runs
in a process of its own, on librdkafka: what it takes of the machine is little, and the same whoever
is measured.

A command counts from when it was due, not from when it was sent: what a stall holds up is late,
too, and not left out of the count. How late this process itself was is told beside it.
"""

import asyncio
import gc
import json
import sys
import threading
import time
import uuid
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from processor.engine.partitioner import partition_of
from tests.benchmarks.running import percentile
from tests.benchmarks.throughput import command

FLOWS: Final = 500
AT_FIRST: Final = 40 * FLOWS
"""Commands as fast as they go: who is measured joins its group, and a JVM compiles what it runs."""
WARM_UP_S: Final = 5
TICK_S: Final = 0.001
PATIENCE_S: Final = 120.0
LATE_OUTCOMES_S: Final = 20.0
"""How long answers are waited for once the last command was sent."""
SWITCH_INTERVAL_S: Final = 0.000_5
BEHIND_MS: Final = 10.0
"""If one command in a hundred was sent later than this after it was due, the load fell behind."""
COMMAND_ID: Final = b'"command_id":"'
SHARES: Final = (50, 95, 99, 99.9)

Sent = tuple[int, bytes, bytes]
"""Partition, key, value."""


def in_reference_words(value: bytes) -> bytes:
    """A command of taskflow's as the peers understand it."""
    body = json.loads(value)
    if body["kind"] == "create_managed":
        body |= {"kind": "create", "owner_session_key": body["issued_by"], "current_step": "init"}
    elif body["kind"] == "start_running":
        body["kind"] = "start"
    return json.dumps(body, separators=(",", ":")).encode()


def was_accepted(outcome_bytes: bytes) -> bool:
    """Whether an outcome, or an audit record of a peer, says that its command took effect."""
    return b'"verdict":"accepted"' in outcome_bytes or (
        b'"verdict"' not in outcome_bytes and b'"kind":"rejected"' not in outcome_bytes
    )


def number_of(outcome_bytes: bytes, flows: int = FLOWS) -> int:
    """Which command it answers, in the order in which they are sent."""
    start = outcome_bytes.index(COMMAND_ID) + len(COMMAND_ID)
    digits = outcome_bytes[start + 19 : start + 23] + outcome_bytes[start + 24 : start + 36]
    flow, turn = divmod(int(digits, 16), 2**32)
    return turn * flows + flow


@dataclass(frozen=True)
class Load:
    """What is sent where, and where the answers are."""

    bootstrap: str
    commands: str
    outcomes_topic: str
    rate_per_s: int
    seconds: int
    reference_words: bool
    partitions: int = 4

    @property
    def paced(self) -> int:
        return self.rate_per_s * (WARM_UP_S + self.seconds)

    def made(self) -> Iterator[Sent]:
        """All commands, in the order in which they are sent."""
        flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(FLOWS)]
        places = [(partition_of(flow.encode(), self.partitions), flow.encode()) for flow in flows]
        for number in range(AT_FIRST + self.paced):
            turn, n = divmod(number, FLOWS)
            value = command(flows[n], turn, n)
            yield *places[n], in_reference_words(value) if self.reference_words else value


class Outcomes:
    """When each command was answered, as a consumer of what is committed sees it."""

    def __init__(self, load: Load) -> None:
        self.at_s = array("d", bytes(8 * (AT_FIRST + load.paced)))
        self.count = 0
        self._stopped = threading.Event()
        self._failed: Exception | None = None
        self._consumer = Consumer(
            {
                "bootstrap.servers": load.bootstrap,
                "group.id": f"{load.outcomes_topic}-measured",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign(
            [
                TopicPartition(load.outcomes_topic, p, OFFSET_BEGINNING)
                for p in range(load.partitions)
            ]
        )
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Outcomes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._consumer.close()

    def until(self, count: int, within_s: float) -> bool:
        """Wait until that many are there."""
        deadline_s = time.perf_counter() + within_s
        while self.count < count and time.perf_counter() < deadline_s:
            if self._failed is not None:
                raise self._failed
            time.sleep(0.05)
        return self.count >= count

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                first = self._consumer.poll(0.1)
                if first is None:
                    continue
                # What came with it; `consume` alone would wait for more.
                more = self._consumer.consume(10_000, 0)
                self._take(time.perf_counter(), [first, *more])
        except Exception as error:
            self._failed = error

    def _take(self, now_s: float, messages: Sequence[Any]) -> None:
        for message in messages:
            if message.error():
                raise AssertionError(message.error())
            value = message.value()
            assert was_accepted(value), value
            number = number_of(value)
            assert not self.at_s[number], f"answered twice: {value!r}"
            self.at_s[number] = now_s
            self.count += 1


def pace(
    count: int,
    rate_per_s: float,
    send: Callable[[int], None],
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[float, "array[float]"]:
    """Send the numbers 0 … `count` - 1 at `rate_per_s`: when it began, in seconds of `clock`, and
    how many seconds after it was due each one was sent. Number n is due n / rate after that."""
    behind_s = array("d")
    began_s, sent = clock(), 0
    while sent < count:
        due = min(count, int((clock() - began_s) * rate_per_s) + 1)
        while sent < due:
            send(sent)
            behind_s.append(clock() - began_s - sent / rate_per_s)
            sent += 1
        sleep(TICK_S)
    return began_s, behind_s


def result(
    began_s: float,
    rate_per_s: int,
    skipped: int,
    behind_s: Sequence[float],
    decided_at_s: Sequence[float],
) -> dict[str, float]:
    """Milliseconds from when each command was due to its answer, without the first `skipped`; an
    answer that never came (0) is in `unanswered`. `answered_per_s`: those that came while commands
    were still sent."""
    numbers = range(skipped, len(decided_at_s))
    first_s = began_s + skipped / rate_per_s
    last_s = began_s + len(decided_at_s) / rate_per_s
    ms = [(decided_at_s[n] - began_s - n / rate_per_s) * 1000 for n in numbers if decided_at_s[n]]
    in_time = sum(first_s <= decided_at_s[n] < last_s for n in range(len(decided_at_s)))
    behind_ms = [late * 1000 for late in behind_s[skipped:]]
    return {
        "rate_per_s": rate_per_s,
        "commands": len(numbers),
        "answered_per_s": in_time / (last_s - first_s),
        "unanswered": len(numbers) - len(ms),
        **{f"p{share}": percentile(ms, share) for share in SHARES},
        "max": max(ms, default=float("nan")),
        "behind_p99_ms": percentile(behind_ms, 99),
        "behind_max_ms": max(behind_ms),
    }


def fell_behind(r: Mapping[str, float]) -> bool:
    """Whether the load itself was late, so that the figures are not those of who was measured."""
    return r["behind_p99_ms"] > BEHIND_MS


def offer(load: Load) -> dict[str, float]:
    """Send the load, await the answers, and say how long they took."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    made = list(load.made())
    gc.freeze()
    gc.disable()
    producer = Producer(
        {
            "bootstrap.servers": load.bootstrap,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,  # the default of Java's client, and of this one
            # Never full: what cannot be sent at once is late, and counts.
            "queue.buffering.max.messages": 10_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
        }
    )

    def send(number: int) -> None:
        place, key, value = made[number]
        producer.produce(load.commands, value, key, place)

    def send_paced(number: int) -> None:
        send(AT_FIRST + number)
        if number % 1_000 == 0:
            producer.poll(0)

    with Outcomes(load) as outcomes:
        for number in range(AT_FIRST):
            send(number)
        producer.flush()
        assert outcomes.until(AT_FIRST, PATIENCE_S), f"{outcomes.count} of {AT_FIRST} answers"
        began_s, behind_s = pace(load.paced, load.rate_per_s, send_paced)
        producer.flush()
        outcomes.until(AT_FIRST + load.paced, LATE_OUTCOMES_S)
        at_s = outcomes.at_s[AT_FIRST:]
    return result(began_s, load.rate_per_s, load.rate_per_s * WARM_UP_S, behind_s, at_s)


async def measure(load: Load) -> dict[str, float]:
    """`offer`, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.paced", json.dumps(asdict(load))),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, f"the load ended with {process.returncode}"
    measured: dict[str, float] = json.loads(out)
    return measured


HEADER: Final = (
    "| {} | commands/s | answered/s | p50 | p95 | p99 | p99.9 | max | load late, p99 |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def row(name: str, r: Mapping[str, float]) -> str:
    """Milliseconds; with a sentence where they mean less than they seem to."""
    shown = (r[key] for key in ("p50", "p95", "p99", "p99.9", "max", "behind_p99_ms"))
    return (
        f"| {name} | {r['rate_per_s']:,.0f} | {r['answered_per_s']:,.0f} | "
        f"{' | '.join(f'{ms:,.1f}' for ms in shown)} |"
        + ("\nThe load itself fell behind: it shared its cores." if fell_behind(r) else "")
        + (f"\n{r['unanswered']:,.0f} were not answered in time." if r["unanswered"] else "")
    )


if __name__ == "__main__":
    print(json.dumps(offer(Load(**json.loads(sys.argv[1])))))
