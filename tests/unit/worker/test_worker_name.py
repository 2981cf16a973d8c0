"""Two live workers with one instance id: who takes the name back, and who gives it up."""

from itertools import product

import pytest

from processor.adapters.kafka.consumer.static_membership import StaticMembership
from processor.errors import InstanceIdTaken

SESSION_S = 10.0


class Name(StaticMembership):
    """A member on a clock that the test moves, in a group that it makes up."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.others = True
        self.asked = 0
        super().__init__(
            {},
            group_id="group",
            instance_id="w-1",
            session_timeout_ms=int(SESSION_S * 1000),
            monotonic=lambda: self.now_s,
        )

    async def _another_is_there(self) -> bool:
        self.asked += 1
        return self.others


def held(for_s: float) -> Name:
    name = Name()
    name.joined("w-1-first")
    name.now_s += for_s
    return name


async def test_who_had_just_got_the_name_gives_it_up_and_says_which() -> None:
    refused = await held(SESSION_S).lost("")

    assert isinstance(refused, InstanceIdTaken)
    assert not refused.retriable
    assert "TASKFLOW_INSTANCE_ID 'w-1'" in str(refused)


async def test_who_held_the_name_for_longer_than_a_session_takes_it_back() -> None:
    assert await held(SESSION_S + 0.1).lost("") is None


async def test_who_took_it_back_holds_it_since_then() -> None:
    name = held(1000.0)
    assert await name.lost("") is None
    name.joined("w-1-second")
    name.now_s += 1.0

    assert isinstance(await name.lost(""), InstanceIdTaken)


async def test_a_rebalance_that_keeps_the_member_counts_for_nothing() -> None:
    name = held(1000.0)
    name.joined("w-1-first")

    assert await name.lost("w-1-first") is None
    assert name.asked == 0


async def test_a_session_that_ended_by_itself_is_no_reason_to_stop() -> None:
    name = held(1.0)
    name.others = False

    assert await name.lost("") is None


@pytest.mark.parametrize("member_id", ["", "w-1-first"])
async def test_before_its_first_join_a_worker_leaves_the_name_of_its_last_run_in_peace(
    member_id: str,
) -> None:
    name = Name()

    assert await name.lost(member_id) is None
    assert name.asked == 0


class Twin(Name):
    """One of two workers with the same name; each step is what it does next of its own."""

    def __init__(self, label: str, holder: list[str]) -> None:
        super().__init__()
        self.label = label
        self.holder = holder
        self.joins = 0
        self.stopped = False

    @property
    def holds(self) -> bool:
        return self.joins > 0 and self.holder == [self._member_id]

    async def _another_is_there(self) -> bool:
        return self.holder not in ([], [self._member_id])

    async def step(self) -> None:
        """Join, or notice that the name is lost, and join again or stop."""
        if self.stopped or self.holds:
            return
        if self.joins and await self.lost("") is not None:
            self.stopped = True
            return
        self.joins += 1
        self.holder[:] = [f"w-1-{self.label}{self.joins}"]
        self.joined(self.holder[0])


@pytest.mark.parametrize("late", range(3))
async def test_of_two_twins_exactly_one_goes_on(late: int) -> None:
    """In whatever order they join and notice, the first `late` steps later than a session."""
    for order in product((0, 1), repeat=6):
        await twins_in(order, late)


async def twins_in(order: tuple[int, ...], late: int) -> None:
    holder: list[str] = []
    twins = [Twin("a", holder), Twin("b", holder)]
    for index, turn in enumerate((*order, *(0, 1) * 6)):
        await twins[turn].step()
        for twin in twins:
            twin.now_s += SESSION_S + 1 if index < late else 0.1

    ends = sorted((twin.stopped, twin.holds) for twin in twins)
    assert ends == [(False, True), (True, False)], order
