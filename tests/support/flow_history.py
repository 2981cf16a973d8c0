"""One flow with its steps, as the commands that it was sent have made it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from processor.contract import Command
from processor.domain.decide import decide
from processor.domain.decision import DEFAULT_LIMITS, Decision, Limits
from processor.domain.evolve import PRUNED, STEP_KINDS, evolve, evolve_step
from processor.domain.facts import Fact
from processor.domain.flow import Flow
from processor.domain.step import ManagedStep, Step
from processor.domain.steps import NO_TOTALS, FlowSteps, StepTotals, is_live, run_id_of
from processor.domain.transitions import Authority
from tests.support.builders import MORNING, NOON, authority_for


@dataclass
class FlowHistory:
    """Folds the facts of each command that it is sent; decides on all that is known."""

    flow: Flow | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    _totals: StepTotals = field(init=False)

    def __post_init__(self) -> None:
        self._totals = self.totals

    def decide(
        self, command: Command, *, at: int = NOON, authority: Authority | None = None
    ) -> Decision:
        """What `command` would do, on the topic where it is at home unless told otherwise."""
        return decide(
            command,
            self.flow,
            at,
            authority=authority or authority_for(command),
            steps=self.known(getattr(command, "run_id", None)),
            limits=self.limits,
        )

    def send(
        self, command: Command, *, at: int = NOON, authority: Authority | None = None
    ) -> Decision:
        """Decide `command`, and fold what follows from it."""
        decision = self.decide(command, at=at, authority=authority)
        self.fold(decision.facts)
        return decision

    def fold(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            self.flow = evolve(self.flow, fact)
            if fact.kind in STEP_KINDS:
                run_id = run_id_of(fact)
                was = self.steps.get(run_id)
                self.steps[run_id] = now = evolve_step(was, fact)
                self._totals = self._totals.after(was, now)
            elif fact.kind is PRUNED:
                self.steps.clear()
                self._totals = NO_TOTALS

    def given(self, *commands: Command, at: int = MORNING) -> Self:
        """Send `commands`, every one of which must be accepted."""
        for command in commands:
            decision = self.send(command, at=at)
            assert decision.accepted, f"{command.kind}: {decision}"
        return self

    def managed(self, run_id: str) -> ManagedStep:
        step = self.steps[run_id]
        assert isinstance(step, ManagedStep)
        return step

    @property
    def totals(self) -> StepTotals:
        """The steps, counted again."""
        totals = NO_TOTALS
        for step in self.steps.values():
            totals = totals.after(None, step)
        return totals

    def known(self, run_id: str | None) -> FlowSteps:
        managed = [step for step in self.steps.values() if isinstance(step, ManagedStep)]
        return FlowSteps(
            self._totals,
            None if run_id is None else self.steps.get(run_id),
            {step.run_id: step.status for step in managed},
            sorted(filter(is_live, managed), key=lambda step: step.run_id.encode()),
        )
