"""A transaction that the broker had acknowledged, and that is not there when it comes back: its
markers were lost, and with the next fence it is aborted. The table leads the topics then."""

import pytest

from processor.testing.memory.kafka import TxnState
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, life, update


def unmake_the_last_transaction(stage: Stage) -> None:
    """All that it wrote stays where it is, and is hidden."""
    entries = stage.kafka.log(stage.place.topics.state).entries
    transaction = next(e.transaction for e in reversed(entries) if e.transaction is not None)
    assert transaction.state is TxnState.COMMITTED
    transaction.state = TxnState.ABORTED


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(update(1, revision=1), id="with events"),
        pytest.param(update(1, revision=77), id="with a refusal alone"),
        pytest.param(create(3), id="with a new flow"),
    ],
)
@pytest.mark.parametrize("more", [False, True], ids=["nothing after it", "commands after it"])
async def test_what_was_unmade_is_decided_again(stage: Stage, last: object, more: bool) -> None:
    stage.kafka.send(*life(1)[:2], create(2))
    await stage.works()
    stage.kafka.send(last)  # type: ignore[arg-type]
    await stage.works()
    decided = stage.kafka.outcomes[-1]
    unmake_the_last_transaction(stage)
    assert len(stage.kafka.outcomes) == 3

    if more:
        stage.kafka.send(update(2, revision=0))
    await stage.works()

    again = stage.kafka.outcomes[3]
    assert {**again, "at": None} == {**decided, "at": None}
    assert stage.kafka.decided
    stage.assert_clean()
