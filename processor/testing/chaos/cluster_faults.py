"""The faults of a chaos run that need a cluster of several brokers."""

import asyncio
import random
from contextlib import suppress
from typing import Final

from aiokafka.errors import KafkaError

from processor.embedded.broker import EmbeddedBroker
from processor.testing.chaos.faults import Act
from processor.testing.chaos.replicas import Replicas
from processor.testing.chaos.stage import ChaosStage

FENCED_TIMEOUT_S: Final = 60.0
"""The controller notices after a session of 3 s; a busy machine takes longer."""
WHOLE_TIMEOUT_S: Final = 120.0


def _replicas(stage: ChaosStage) -> Replicas:
    assert stage.replicas is not None, "these acts are drawn only with several brokers"
    return stage.replicas


async def _move_leaders(stage: ChaosStage, dice: random.Random) -> str:
    """Move the leaders of all partitions, including coordinators', during transactions."""
    times, moved = dice.randrange(1, 5), 0
    for _ in range(times):
        with suppress(KafkaError, OSError, TimeoutError):  # a busy machine answers too late
            moved += await _replicas(stage).move_leaders(dice)
        await asyncio.sleep(dice.uniform(0, 1))
    return f"{moved} in {times} elections"


async def _shrink(stage: ChaosStage, dice: random.Random) -> str:
    """Suspend a broker until it is in no in-sync set, and let it continue. Its partitions have
    other leaders then, which it does not know yet."""
    broker, witness, *_ = dice.sample(stage.brokers, len(stage.brokers))
    broker.pause()
    try:
        await _until_out(stage, [broker], witness)
        await asyncio.sleep(dice.uniform(0, 3))
    finally:
        broker.resume()
    return f"broker {broker.node_id}"


async def _leave_too_few(stage: ChaosStage, dice: random.Random) -> str:
    """Kill or suspend all brokers but one: commands must wait, and no acknowledged one is lost."""
    left, *away = dice.sample(stage.brokers, len(stage.brokers))
    if kill := dice.random() < 0.5:
        for broker in away:
            await broker.kill()
            stage.killed("broker")
    else:
        for broker in away:
            broker.pause()
    try:
        await _until_out(stage, away, left)
        await asyncio.sleep(dice.uniform(0, 3))
    finally:
        if not kill:
            for broker in away:
                broker.resume()
    if kill:
        await asyncio.gather(*(broker.start() for broker in away))
    names = " and ".join(str(broker.node_id) for broker in away)
    return f"{'killed' if kill else 'stopped'} brokers {names}"


async def _until_out(
    stage: ChaosStage, away: list[EmbeddedBroker], witness: EmbeddedBroker
) -> None:
    """Wait until no broker of `away` is in an in-sync set or leads a partition."""
    ids = {broker.node_id for broker in away}
    await _replicas(stage).until(
        witness,
        f"brokers {sorted(ids)} are in no in-sync set",
        lambda seen: not any(ids & {*one.insync, one.leader} for one in seen),
        timeout_s=FENCED_TIMEOUT_S,
    )


async def _restart_each(stage: ChaosStage, dice: random.Random) -> str:
    """Restart each broker in turn, as for an upgrade of Kafka."""
    for broker in dice.sample(stage.brokers, len(stage.brokers)):
        await broker.restart()
        await _replicas(stage).until_whole(timeout_s=WHOLE_TIMEOUT_S)
    return ""


async def _kill_controller(stage: ChaosStage, dice: random.Random) -> str:
    """Kill the controller and start it again; in between no leader and no in-sync set changes."""
    assert stage.controller is not None, "there is one where there are several brokers"
    await stage.controller.kill()
    stage.killed("controller")
    await asyncio.sleep(dice.uniform(0, 4))
    await stage.controller.start()
    return ""


CLUSTER_MENU: Final = (
    Act("move leaders", 8, _move_leaders, needs_broker=True),
    Act("shrink in-sync sets", 6, _shrink, needs_broker=True),
    Act("leave too few brokers in sync", 6, _leave_too_few, needs_broker=True),
    Act("restart each broker", 2, _restart_each, needs_broker=True),
    Act("kill the controller", 3, _kill_controller, needs_broker=True),
)
"""Added to MENU if there are several brokers."""
