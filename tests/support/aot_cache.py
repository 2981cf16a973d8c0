"""Make an AOT cache of the embedded broker's JVM, so that the dozens of brokers that tests start
take a third of the CPU seconds: `python -m tests.support.aot_cache FILE`.

The JVM writes it when a broker ends that has seen what a broker in the tests sees.
"""

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.client import FlowClient
from processor.embedded import broker as embedded
from processor.settings import Settings
from tests.support.worker import running_worker

COMMANDS = 200
WRITTEN_WITHIN_S = 300.0


async def make(cache: Path) -> None:
    """Run a broker, a worker and a client, and have the JVM write the cache at the end."""
    options = embedded._jvm_options

    def recording(*how: object) -> list[str]:
        return [*options(*how), f"-XX:AOTCacheOutput={cache}"]  # type: ignore[arg-type]

    embedded._jvm_options = recording  # type: ignore[assignment]
    embedded.STOP_TIMEOUT_S = WRITTEN_WITHIN_S
    async with embedded.embedded_broker() as broker:
        with TemporaryDirectory() as home:
            settings = Settings(
                bootstrap_servers=broker.bootstrap, partitions=2, state_dir=Path(home), http=None
            )
            await create_topics(settings)
            async with running_worker(settings), FlowClient(settings) as client:
                await asyncio.gather(*(client.send(create()) for _ in range(COMMANDS)))


def create() -> dict[str, str]:
    return {
        "kind": "create_managed",
        "flow_id": str(uuid4()),
        "issued_by": "tests",
        "controller_id": "tests",
        "goal": "Warm up",
        "requester_origin": "tests",
    }


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1]).absolute()))
