"""One commit for all partitions whose owners ask meanwhile."""

import asyncio
import gc
from typing import Any

import pytest
from aiokafka import TopicPartition

from processor.adapters.kafka.consumer.commit_coalescer import CommitCoalescer, Offsets


class Group:
    """Takes commits, each once `answer` is called, which says what became of it."""

    def __init__(self) -> None:
        self.commits: list[dict[TopicPartition, int]] = []
        self._commits: list[asyncio.Future[None]] = []

    async def commit(self, offsets: Offsets) -> None:
        self.commits.append(dict(offsets))
        self._commits.append(asyncio.get_running_loop().create_future())
        await self._commits[-1]

    def finish(self, number: int, error: Exception | None = None) -> None:
        if error is None:
            self._commits[number].set_result(None)
        else:
            self._commits[number].set_exception(error)


def of(partition: int) -> dict[TopicPartition, int]:
    return {TopicPartition("t", partition): 10 * partition}


async def let_it_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_asks_while_a_commit_is_under_way_shares_the_next() -> None:
    group = Group()
    proofs = CommitCoalescer(group.commit)
    first = asyncio.create_task(proofs.prove(of(1)))
    await let_it_run()
    others = [asyncio.create_task(proofs.prove(of(n))) for n in (2, 3, 4)]
    await let_it_run()
    assert group.commits == [of(1)]

    group.finish(0)
    await let_it_run()
    assert first.done()
    assert not any(task.done() for task in others), "the first began before they asked"
    assert group.commits == [of(1), of(2) | of(3) | of(4)]
    group.finish(1)
    await asyncio.gather(first, *others)


async def test_an_error_is_heard_by_those_whose_commit_it_was_and_by_nobody_else() -> None:
    group = Group()
    proofs = CommitCoalescer(group.commit)
    first = asyncio.create_task(proofs.prove(of(1)))
    await let_it_run()
    others = [asyncio.create_task(proofs.prove(of(n))) for n in (2, 3)]
    await let_it_run()
    group.finish(0, ConnectionError("gone"))
    with pytest.raises(ConnectionError):
        await first
    await let_it_run()
    group.finish(1)
    await asyncio.gather(*others)


async def test_who_does_not_wait_any_more_does_not_end_it_for_others() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    group = Group()
    proofs = CommitCoalescer(group.commit)
    gone, stays = (asyncio.create_task(proofs.prove(of(n))) for n in (1, 2))
    await let_it_run()
    assert group.commits == [of(1) | of(2)]
    gone.cancel()
    await let_it_run()
    group.finish(0)
    await stays
    assert gone.cancelled()

    alone = asyncio.create_task(proofs.prove(of(3)))
    await let_it_run()
    alone.cancel()
    await let_it_run()
    group.finish(1, ConnectionError("nobody hears this"))
    await let_it_run()
    again = asyncio.create_task(proofs.prove(of(3)))
    await let_it_run()
    group.finish(2)
    await again
    gc.collect()
    assert complaints == []
