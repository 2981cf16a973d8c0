"""Taskflow reference work on faust-streaming: exactly_once, Table with changelog.

PEER_STORE     memory:// (default) or rocksdb:// (rocksdict driver)
PEER_STOCK=1   leave faust's transaction manager as it is (see README: the audit
               events then do not take part in the transaction)
"""

import os
import sys
from pathlib import Path

import faust
import orjson
from faust.transport.consumer import TransactionManager

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference import event as make_event
from reference import step

env = os.environ
INPUT, AUDIT = env["PEER_INPUT"], env["PEER_AUDIT"]
kw = {}
if env.get("PEER_COMMIT_MS"):
    kw["broker_commit_interval"] = float(env["PEER_COMMIT_MS"]) / 1000  # library default: 2.8 s
app = faust.App(
    env["PEER_APP_ID"],
    broker="kafka://" + env["PEER_BOOTSTRAP"],
    store=env.get("PEER_STORE", "memory://"),
    datadir=env["PEER_STATE_DIR"],
    topic_partitions=4,
    topic_replication_factor=1,
    processing_guarantee=env.get("PEER_GUARANTEE", "exactly_once"),
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
    stream_wait_empty=False,
    broker_max_poll_records=5000,
    broker_commit_every=int(env.get("PEER_COMMIT_EVERY", "10000")),
    producer_linger=0.02,
    producer_max_batch_size=262144,
    producer_compression_type=env.get("PEER_COMPRESSION", "lz4") or None,
    **kw,
)
raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
commands = app.topic(INPUT, **raw)
audit = app.topic(AUDIT, **raw)
flows = app.Table("flows", partitions=4, key_type=bytes, value_type=bytes)

if env.get("PEER_STOCK") != "1":
    # faust picks the transaction of an outgoing message from the consumer's own
    # metadata, which lacks topics that are only produced to: such a message then
    # goes out through the plain producer.  Send it in its source partition's
    # transaction instead.
    stock_send = TransactionManager.send

    async def send(
        self, topic, key, value, partition, timestamp, headers, *, transactional_id=None
    ):
        if topic == AUDIT and partition is not None:
            group = self.app.assignor.group_for_topic(INPUT)
            return await self.producer.send(
                topic,
                key,
                value,
                partition,
                timestamp,
                headers,
                transactional_id=f"{self.app.conf.id}-{group}-{partition}",
            )
        return await stock_send(self, topic, key, value, partition, timestamp, headers)

    TransactionManager.send = send

loads, dumps = orjson.loads, orjson.dumps


@app.agent(commands)
async def handle(stream):
    async for ev in stream.events():
        m = ev.message
        k = ev.key
        key = k.decode()
        at = int(m.timestamp * 1000)
        try:
            cmd = loads(ev.value)
        except ValueError:
            cmd = None
        old = flows.get(k)
        flow = loads(old) if old is not None else None
        new, kind, error = step(key, cmd, flow, at)
        if new is not None:
            flows[k] = dumps(new)
        await audit.send(
            key=k,
            partition=m.partition,
            timestamp=m.timestamp,
            value=dumps(
                make_event(f"{m.partition}-{m.offset}", key, cmd, new or flow, kind, error, at)
            ),
        )


if __name__ == "__main__":
    app.main()
