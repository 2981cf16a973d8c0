"""Topics that are not as `taskflow topics create` makes them."""

import asyncio

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from processor.adapters.kafka.admin.topic_admin import open_admin, topic_configs
from processor.contract.topics import COMMANDS, CONTROL
from processor.settings import Settings
from tests.support.machine import patience


async def set_compression(settings: Settings, compression_type: str) -> None:
    """Set `compression.type` of `commands` and `control`; "producer" is as Kafka has it. Returns
    once the broker knows."""
    async with open_admin(settings) as admin:
        await admin.alter_configs(
            [
                ConfigResource(
                    ConfigResourceType.TOPIC,
                    f"{settings.topic_prefix}.{spec.name}",
                    configs={**spec.config, "compression.type": compression_type},
                )
                for spec in (COMMANDS, CONTROL)
            ]
        )
    names = [f"{settings.topic_prefix}.{spec.name}" for spec in (COMMANDS, CONTROL)]
    async with asyncio.timeout(patience(10)):
        while True:
            configs = await topic_configs(settings, names)
            if {config["compression.type"] for config in configs.values()} == {compression_type}:
                return
            await asyncio.sleep(0.02)
