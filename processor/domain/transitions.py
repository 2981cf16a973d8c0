"""The table of legal moves, and which kind of command asks for which."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Final

from processor.contract.commands import CONTROL_ONLY, CommandKind, StepCommand
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.steps import StepStatus
from processor.domain.flow import Flow

# By name, here and elsewhere: Python 3.11 runs a function whenever an enum is asked for a member.
CREATED, RUNNING, WAITING = FlowStatus.CREATED, FlowStatus.RUNNING, FlowStatus.WAITING
CANCELLED, FINISHED, FAILED = FlowStatus.CANCELLED, FlowStatus.FINISHED, FlowStatus.FAILED
PENDING: Final = StepStatus.PENDING

MOVES: Final[Mapping[FlowStatus, frozenset[FlowStatus]]] = MappingProxyType(
    {
        CREATED: frozenset({RUNNING, CANCELLED}),
        RUNNING: frozenset({WAITING, FINISHED, FAILED, CANCELLED}),
        WAITING: frozenset({RUNNING, FAILED, CANCELLED}),
    }
)
LIVE: Final = frozenset(MOVES)
TERMINAL: Final = frozenset(FlowStatus) - LIVE
GONE: Final = "gone"
"""Where `prune` leads: the flow is no more."""


class Authority(StrEnum):
    """Which topic a command came by, and so what its sender may do."""

    OWNER = "commands"
    OPERATOR = "control"


OWNER, OPERATOR = Authority.OWNER, Authority.OPERATOR


STEP_COMMANDS: Final = frozenset(
    CommandKind(model.model_fields["kind"].default) for model in StepCommand.__args__
)
"""Kinds about managed steps. What they find there decides whether they are taken, so that no
outcome lists them in `allowed`."""


@dataclass(frozen=True, slots=True)
class Move:
    """From which statuses a kind leads where; `to` None: the status stays."""

    origins: frozenset[FlowStatus]
    to: FlowStatus | None


def _from(*origins: FlowStatus, to: FlowStatus | None) -> Move:
    return Move(frozenset(origins), to)


KINDS: Final[Mapping[CommandKind, Move]] = MappingProxyType(
    {
        CommandKind.START_RUNNING: _from(CREATED, to=RUNNING),
        CommandKind.SET_WAITING: _from(RUNNING, to=WAITING),
        CommandKind.RESUME: _from(WAITING, to=RUNNING),
        CommandKind.RESUME_EXTERNAL: _from(WAITING, to=RUNNING),
        CommandKind.FINISH: _from(RUNNING, to=FINISHED),
        CommandKind.FAIL: _from(RUNNING, WAITING, to=FAILED),
        CommandKind.CANCEL: _from(*LIVE, to=CANCELLED),
        CommandKind.UPDATE_STATE: _from(*LIVE, to=None),
        CommandKind.REQUEST_CANCEL: _from(*FlowStatus, to=None),
        CommandKind.RECORD_STEP_OBSERVATION: _from(*FlowStatus, to=None),
        CommandKind.WAKE: _from(WAITING, to=RUNNING),
        CommandKind.PRUNE: _from(*TERMINAL, to=None),
    }
    | {kind: _from(*LIVE, to=None) for kind in STEP_COMMANDS}
)
"""Creates are not here: they start from no flow at all."""

CREATES: Final = frozenset({CommandKind.CREATE_MANAGED, CommandKind.CREATE_MIRRORED})
ANY_TIME: Final = frozenset(
    {CommandKind.PRUNE, CommandKind.REQUEST_CANCEL, CommandKind.RECORD_STEP_OBSERVATION}
)
"""Kinds that neither a terminal status nor a pending cancel refuses."""
DURING_CANCEL: Final = ANY_TIME | {
    CommandKind.EXTEND_STEP,
    CommandKind.COMPLETE_STEP,
    CommandKind.FAIL_STEP,
    CommandKind.CANCEL_STEP,
    CommandKind.WAKE_STEP,
}
"""Kinds that a pending cancel does not refuse."""
OPEN_TO_ALL: Final = frozenset(
    {
        CommandKind.RESUME_EXTERNAL,
        CommandKind.RECORD_STEP_OBSERVATION,
        CommandKind.START_STEP,
        CommandKind.EXTEND_STEP,
        CommandKind.COMPLETE_STEP,
        CommandKind.FAIL_STEP,
        CommandKind.RELEASE_STEP,
    }
)
"""Kinds that need no ownership."""


@dataclass(frozen=True, slots=True)
class StepMove:
    """From which statuses a kind leads a step where; `to` None: that depends on the step. `held`:
    only for the holder of the attempt that the command names."""

    origins: frozenset[StepStatus]
    to: StepStatus | None
    held: bool


def _step_from(*origins: StepStatus, to: StepStatus | None, held: bool = False) -> StepMove:
    return StepMove(frozenset(origins), to, held)


STEP_MOVES: Final[Mapping[str, StepMove]] = MappingProxyType(
    {
        "start_step": _step_from(PENDING, to=StepStatus.RUNNING),
        "extend_step": _step_from(StepStatus.RUNNING, to=None, held=True),
        "complete_step": _step_from(
            StepStatus.RUNNING, PENDING, to=StepStatus.SUCCEEDED, held=True
        ),
        "fail_step": _step_from(StepStatus.RUNNING, to=None, held=True),
        "release_step": _step_from(StepStatus.RUNNING, to=PENDING, held=True),
        "cancel_step": _step_from(PENDING, StepStatus.RUNNING, to=StepStatus.CANCELLED),
        "retry_step": _step_from(PENDING, StepStatus.FAILED, StepStatus.CANCELLED, to=PENDING),
        "wake_step": _step_from(PENDING, StepStatus.RUNNING, to=None),
    }
)
"""By a command's kind. `schedule_step` is not here: it starts from no step at all."""


def destination(kind: CommandKind, status: FlowStatus, cancel_requested: bool) -> FlowStatus | None:
    """Where `kind` would lead from `status`; None: it stays. A wake that finds a cancel pending
    cancels."""
    if kind is CommandKind.WAKE and cancel_requested and status is WAITING:
        return CANCELLED
    return KINDS[kind].to


@cache
def refusal(kind: CommandKind, status: FlowStatus, cancel_requested: bool) -> Code | None:
    """What checks 13 to 15 of the contract say, or None where they let `kind` pass."""
    if kind not in ANY_TIME:
        if status in TERMINAL:
            return Code.ALREADY_TERMINAL
        if (
            cancel_requested
            and kind not in DURING_CANCEL
            and destination(kind, status, cancel_requested) is not CANCELLED
        ):
            return Code.CANCEL_PENDING
    return None if status in KINDS[kind].origins else Code.ILLEGAL_TRANSITION


@dataclass(frozen=True, slots=True)
class KindRules:
    """What checks 8 to 15 must know of a kind of command."""

    kind: CommandKind
    control_only: bool
    open_to_all: bool
    refusals: Mapping[tuple[bool, str], Code | None]
    """`refusal`, by whether a cancel is pending and the flow's status."""


RULES: Final[Mapping[str, KindRules]] = MappingProxyType(
    {
        kind.value: KindRules(
            kind,
            kind in CONTROL_ONLY,
            kind in OPEN_TO_ALL,
            {
                (pending, status.value): None if kind in CREATES else refusal(kind, status, pending)
                for pending in (False, True)
                for status in FlowStatus
            },
        )
        for kind in CommandKind
    }
)
"""By a kind's name, as a command has it."""


@cache
def allowed_from(
    status: FlowStatus, cancel_requested: bool, authority: Authority
) -> tuple[str, ...]:
    """As `allowed`, by what it depends on."""
    forbidden = CONTROL_ONLY if authority is Authority.OWNER else frozenset()
    open_kinds = KINDS.keys() - STEP_COMMANDS - forbidden
    return tuple(sorted(str(k) for k in open_kinds if refusal(k, status, cancel_requested) is None))


def allowed(flow: Flow, authority: Authority) -> tuple[str, ...]:
    """The kinds, sorted, that would pass checks 13 to 15 now from the same topic."""
    return allowed_from(flow.status, flow.cancel_requested, authority)
