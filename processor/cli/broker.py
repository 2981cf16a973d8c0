"""`taskflow broker`: run only the embedded broker.

What the command needs is imported when it runs.
"""

import asyncio
from contextlib import AsyncExitStack

from processor.cli.common.output import say
from processor.cli.common.runner import embedded_port, run_until_stopped, settings_and_logs
from processor.runtime import unless_stopped


def broker() -> None:
    """Run the embedded broker, a real single-node Apache Kafka.

    It runs until Ctrl-C, listens on 127.0.0.1 at the port of TASKFLOW_BOOTSTRAP_SERVERS (9092),
    keeps its data in TASKFLOW_STATE_DIR/broker, and needs no installed Java: the first run fetches
    what it takes. It is started again if its process ends.

    Example: `taskflow broker`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_STATE_DIR, TASKFLOW_CACHE_DIR,
    TASKFLOW_BROKER_HEAP.
    """
    from processor.embedded.broker import embedded_broker
    from processor.embedded.environment import need_extra
    from processor.embedded.keeper import kept_running

    settings = settings_and_logs()
    port = embedded_port(settings)
    need_extra()

    async def serve(stop: asyncio.Event) -> None:
        say("starting Apache Kafka ...")
        broker = embedded_broker(
            data_dir=settings.state_dir / "broker",
            port=port,
            heap=settings.broker_heap,
            cache_dir=settings.cache_dir,
        )
        async with AsyncExitStack() as stack:
            running = await unless_stopped(stack.enter_async_context(broker), stop)
            if running is None:
                return
            await stack.enter_async_context(kept_running(running, stop, say))
            say(f"Apache Kafka answers at {running.bootstrap}; its data is in {running.data_dir}.")
            say("Next: `taskflow topics create`, then `taskflow worker`. Ctrl-C ends it.")
            await stop.wait()

    run_until_stopped(serve)
