"""An asynchronous context for a whole session, whose tests have a loop each."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def on_a_loop_of_its_own(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter and leave `context` on a loop in a thread of its own."""
    with ThreadPoolExecutor(max_workers=1) as thread, asyncio.Runner() as runner:
        yield thread.submit(runner.run, context.__aenter__()).result()
        thread.submit(runner.run, context.__aexit__(None, None, None)).result()
        thread.submit(runner.close).result()
