"""The steps of a batch's flows: what was loaded, and what the batch makes of it."""

from collections.abc import Iterator, Sequence

from processor.contract.commands import Command
from processor.contract.headers import Headers
from processor.contract.steps import StepStatus
from processor.domain.flow import Flow
from processor.domain.step import ManagedStep, Step
from processor.domain.steps import (
    NO_STEPS,
    NONE_LISTED,
    FlowSteps,
    StepTotals,
    is_live,
    new_flow_steps,
)
from processor.engine.batch import LoadedState
from processor.engine.rows import StepRow

StepKey = tuple[str, str]
"""Flow id and run id."""


class BatchSteps:
    """Steps by flow and run id: as they were before the batch, as far as they are loaded, and as
    they are now."""

    def __init__(self, loaded: LoadedState) -> None:
        self._loaded = loaded
        self._loaded_live: dict[str, dict[str, StepRow]] = {}
        self._now: dict[StepKey, tuple[StepRow | None, Step | None, Headers]] = {}
        """What the batch has touched, as it was and is, with the headers of the command that
        touched it last."""
        self._touched: dict[str, dict[str, None]] = {}
        """By flow, the run ids that the batch has touched."""

    def step(self, at: StepKey) -> Step | None:
        """The step as it is now, as far as it is known."""
        now = self._now.get(at)
        if now is not None:
            return now[1]
        row = self._row_before(at)
        return None if row is None else row.step

    def put(self, at: StepKey, step: Step | None, headers: Headers) -> int:
        """Take in what a command, with `headers` that go on, made of a step; None: it is gone.

        Returns how many bytes the step took before the batch, if it is touched for the first time.
        """
        now = self._now.get(at)
        if now is not None:
            self._now[at] = now[0], step, headers
            return 0
        before = self._row_before(at)
        self._now[at] = before, step, headers
        self._touched.setdefault(at[0], {})[at[1]] = None
        return 0 if before is None else len(before.doc)

    def remove_all(self, flow_id: str, headers: Headers) -> None:
        """Take in that the flow was pruned."""
        # A dict, for its order: the same records give the same bytes.
        loaded = dict.fromkeys(self._loaded.run_ids.get(flow_id, ()))
        for run_id in loaded | self._touched.get(flow_id, {}):
            self.put((flow_id, run_id), None, headers)

    def touched(self) -> Iterator[tuple[StepKey, tuple[StepRow | None, Step | None, Headers]]]:
        """Each step that the batch has touched, as it was and is, with the headers of the command
        that touched it last, in the order in which they were touched first."""
        return iter(self._now.items())

    def needed_by(self, command: Command, flow: Flow, totals: StepTotals) -> FlowSteps:
        """What `command` must know of the steps of its `flow`, which are counted in `totals`."""
        run_id: str | None = command.__dict__.get("run_id")
        if run_id is not None:
            named = self.step((flow.id, run_id))
            wait = flow.wait_json
            if wait is None or wait["kind"] != "steps":
                return new_flow_steps((totals, named, NONE_LISTED, ()))
            return FlowSteps(totals, named, self._listed(flow.id, wait.get("run_ids")))
        if command.kind == "set_waiting":
            run_ids = command.wait.run_ids if command.wait.kind == "steps" else None
            return FlowSteps(totals, None, self._listed(flow.id, run_ids))
        if not totals.live:
            return NO_STEPS
        return FlowSteps(totals, live=self._live(flow.id, totals.live))

    def _row_before(self, at: StepKey) -> StepRow | None:
        row = self._loaded.steps.get(at)
        if row is None and at[0] in self._loaded.live:
            row = self._live_before(at[0]).get(at[1])
        return row

    def _live_before(self, flow_id: str) -> dict[str, StepRow]:
        """The flow's live steps before the batch, by run id."""
        rows = self._loaded_live.get(flow_id)
        if rows is None:
            rows = {row.step.run_id: row for row in self._loaded.live.get(flow_id, ())}
            self._loaded_live[flow_id] = rows
        return rows

    def _listed(self, flow_id: str, run_ids: Sequence[str] | None) -> dict[str, StepStatus]:
        """The status of each managed step that a join lists."""
        steps = ((run_id, self.step((flow_id, run_id))) for run_id in run_ids or ())
        return {run_id: step.status for run_id, step in steps if step and step.runtime == "managed"}

    def _live(self, flow_id: str, count: int) -> list[ManagedStep]:
        """All live steps of the flow, in order of their run ids' UTF-8 bytes (which is that of
        their code points)."""
        run_ids = self._live_before(flow_id).keys() | self._touched.get(flow_id, {}).keys()
        steps = (self.step((flow_id, run_id)) for run_id in sorted(run_ids))
        live = [step for step in steps if step and is_live(step)]
        if len(live) != count:
            raise LookupError(f"{len(live)} of {count} live steps were loaded")
        return live
