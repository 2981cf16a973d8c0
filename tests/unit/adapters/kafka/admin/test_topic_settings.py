"""What of a topic's settings is amiss, why, and how an operator sets it."""

from processor.adapters.kafka.admin.topic_admin import _compare
from processor.contract.topics import COMMANDS, MIN_INSYNC


def test_of_three_replicas_one_that_acknowledges_is_too_few() -> None:
    """Three brokers are lost in tests/faults/test_cluster.py."""
    wanted = COMMANDS.replicated(3)
    as_wanted = {"max.message.bytes": str(2**31), **wanted}

    (mismatch,) = _compare("t.commands", wanted, {**as_wanted, MIN_INSYNC: "1"})

    assert str(mismatch) == (
        "t.commands: min.insync.replicas is 1, must be at least 2; what is acknowledged may be "
        "lost with one broker"
    )
    assert "--add-config min.insync.replicas=2`" in mismatch.cure
    assert not mismatch.fatal, "a worker starts, and warns"
    assert _compare("t.commands", wanted, as_wanted) == []
    assert _compare("t.commands", wanted, {**as_wanted, MIN_INSYNC: "3"}) == []
