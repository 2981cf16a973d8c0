"""Client quotas of a broker, by Kafka's protocol: aiokafka's admin client has no call for them."""

from collections.abc import Mapping

from aiokafka import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int16, Int32, Schema, String


class AlterClientQuotasResponse(Response):  # type: ignore[misc]
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "entries",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("entity", Array(("type", String("utf-8")), ("name", String("utf-8")))),
            ),
        ),
    )


class AlterClientQuotasRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = AlterClientQuotasResponse
    SCHEMA = Schema(
        (
            "entries",
            Array(
                ("entity", Array(("type", String("utf-8")), ("name", String("utf-8")))),
                (
                    "ops",
                    Array(("key", String("utf-8")), ("value", Float64), ("remove", Boolean)),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class AlterClientQuotasRequest(Request[AlterClientQuotasRequestStruct]):  # type: ignore[misc]
    API_KEY = 49

    def __init__(self, client_id: str, limits: Mapping[str, float]) -> None:
        self._client_id = client_id
        self._limits = limits

    def build(
        self, request_struct_class: type[AlterClientQuotasRequestStruct]
    ) -> AlterClientQuotasRequestStruct:
        ops = [(key, value, False) for key, value in self._limits.items()]
        return request_struct_class([([("client-id", self._client_id)], ops)], False)


async def limit(bootstrap: str, client_id: str, **limits: float) -> None:
    """Limits of one client: `producer_byte_rate`, `consumer_byte_rate` (bytes a second),
    `request_percentage`. They hold as long as the broker's data."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        # A controller answers at another address than the one that was asked.
        outcome = await client.send(
            client.get_random_node(), AlterClientQuotasRequest(client_id, limits)
        )
        ((code, message, _),) = outcome.entries
        assert code == 0, f"no quota: {code} {message}"
    finally:
        await client.close()
