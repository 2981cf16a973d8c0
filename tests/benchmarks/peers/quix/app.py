"""Taskflow reference work on Quix Streams: exactly-once, RocksDB state, changelog topic."""

import os
import sys
from pathlib import Path

import orjson
from quixstreams import Application, message_context

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference import event, step

env = os.environ
kw = {}
if env.get("PEER_COMMIT_MS"):
    kw["commit_interval"] = float(env["PEER_COMMIT_MS"]) / 1000  # library default: 5 s
app = Application(
    broker_address=env["PEER_BOOTSTRAP"],
    consumer_group=env["PEER_APP_ID"],
    state_dir=env["PEER_STATE_DIR"],
    auto_offset_reset="earliest",
    processing_guarantee=env.get("PEER_GUARANTEE", "exactly-once"),
    producer_extra_config={"compression.type": env.get("PEER_COMPRESSION", "lz4")},
    loglevel="INFO",
    **kw,
)
commands = app.topic(env["PEER_INPUT"], key_deserializer="str", value_deserializer="bytes")
audit = app.topic(env["PEER_AUDIT"], key_serializer="str", value_serializer="bytes")

loads, dumps = orjson.loads, orjson.dumps


def handle(value, key, timestamp, headers, state):
    try:
        cmd = loads(value)
    except ValueError:
        cmd = None
    ctx = message_context()
    flow = state.get("flow")
    new, kind, error = step(key, cmd, flow, timestamp)
    if new is not None:
        state.set("flow", new)
    return dumps(
        event(f"{ctx.partition}-{ctx.offset}", key, cmd, new or flow, kind, error, timestamp)
    )


sdf = app.dataframe(commands)
sdf = sdf.apply(handle, stateful=True, metadata=True)
sdf = sdf.to_topic(audit)

if __name__ == "__main__":
    app.run()
