"""A flow that ends with a thousand pending steps of 4 KiB, through a worker on a real Kafka."""

import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from aiokafka import AIOKafkaProducer

from processor.contract.values import LIVE_STEPS_MAX, parse_timestamp
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.builders import FLOW_ID, document
from tests.support.json_values import json_of
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.worker import running_worker

ABOUT = {"controller_id": "c", "goal": "g", "requester_origin": "r"}


async def test_a_flow_with_a_thousand_pending_steps_ends_in_one_transaction(
    broker: EmbeddedBroker,
    prefix: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=1,
        state_dir=tmp_path,
        http=None,
    )
    item = {"task": "t", "input_json": "x" * 4_094}
    steps = [document("schedule_step", run_id=f"r{n}", **item) for n in range(LIVE_STEPS_MAX)]

    async with (
        running_worker(settings),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
        observing(broker.bootstrap, prefix, 1) as observer,
    ):
        for body in (document("create_mirrored", **ABOUT), *steps):
            await producer.send(f"{prefix}.commands", json.dumps(body).encode(), FLOW_ID.encode())
        await producer.flush()
        await observer.settled([tmp_path], timeout_s=patience(30))
        cancel = json.dumps(document("cancel")).encode()
        sent = await producer.send_and_wait(f"{prefix}.commands", cancel, FLOW_ID.encode())
        world = await observer.settled([tmp_path], timeout_s=patience(30))

    world.assert_clean()
    outcome = next(
        record for record in world.all_of("outcomes") if json_of(record)["kind"] == "cancel"
    )
    doc = json_of(outcome)
    assert (doc["verdict"], len(doc["event_ids"])) == ("accepted", 1 + LIVE_STEPS_MAX)
    # Between two cursors lies one transaction.
    state = [*world.all_of("state")][::-1]
    assert state[0].key == b"cursor/0"
    last = [*takewhile(lambda record: record.key != b"cursor/0", state[1:])]
    assert len(last) == 1 + LIVE_STEPS_MAX
    statuses = {json_of(r)["step"]["status"] for r in last if b"/" in (r.key or b"")}
    assert statuses == {"cancelled"}
    assert sent.timestamp == parse_timestamp(doc["at"])
    record_property("append_to_append_ms", outcome.timestamp - sent.timestamp)
