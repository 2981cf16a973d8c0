"""An address that is none of PostgreSQL, and what is said of it."""

import pytest

from processor.adapters.postgres.connection import PostgresSchema, connected
from processor.adapters.postgres.errors import DatabaseRefused


@pytest.mark.parametrize("between", ["/", "?", "#", "["])
async def test_no_part_of_a_password_is_said_that_the_driver_takes_for_a_port(between: str) -> None:
    """It is written in it as it stands, where an address has %2F and the like."""
    dsn = f"postgresql://orders:secret{between}secret@db.example:5432/orders"
    with pytest.raises(DatabaseRefused) as refused:
        async with connected(PostgresSchema(dsn, "public", "taskflow sink", "TASKFLOW_SINK_DSN")):
            pass
    assert "TASKFLOW_SINK_DSN is no address of PostgreSQL" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__  # nor in a traceback


async def test_an_address_of_something_else_is_said_to_be() -> None:
    dsn = "mysql://orders:secret@db.example/orders"
    with pytest.raises(DatabaseRefused, match="scheme is expected to be") as refused:
        async with connected(PostgresSchema(dsn, "public", "taskflow sink", "TASKFLOW_SINK_DSN")):
            pass
    assert "secret" not in str(refused.value)
