"""Tool: one thing that a model may ask for, with its arguments and the right that it needs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import mcp_types as types
from pydantic import BaseModel, ConfigDict, Field

from processor.contract.values import Uuid
from processor.mcp.flow_session import FlowSession


class Permission(IntEnum):
    """What a server was started for; each includes those before it."""

    READ = 0
    WRITE = 1
    OPERATE = 2


class Arguments(BaseModel):
    """Arguments of a tool; what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


FlowId = Annotated[Uuid, Field(description="The flow's id.")]
Revision = Annotated[
    int,
    Field(
        ge=0,
        description="The flow's revision as you saw it last; if it has changed since, nothing is "
        "done, and you are told the present one.",
    ),
]
A = TypeVar("A", bound=Arguments)
Call = Callable[[FlowSession, A], Awaitable[types.CallToolResult]]


@dataclass(frozen=True, slots=True)
class FlowTool:
    """A tool on flows; `call` takes the session and the arguments, and returns refusals."""

    name: str
    description: str
    arguments: type[Arguments]
    call: Call[Any]
    needs: Permission
    destructive: bool

    def published(self) -> types.Tool:
        """The tool as `tools/list` has it."""
        reads = self.needs is Permission.READ
        return types.Tool(
            name=self.name,
            description=self.description,
            input_schema=self.arguments.model_json_schema(),
            annotations=types.ToolAnnotations(
                read_only_hint=reads,
                destructive_hint=self.destructive,
                # The same call again changes nothing twice.
                idempotent_hint=True,
                open_world_hint=False,
            ),
        )


def flow_tool(
    call: Call[A],
    arguments: type[A],
    needs: Permission,
    *,
    destructive: bool = False,
) -> FlowTool:
    """Return the tool of a function: its name, and its docstring as the description."""
    text = " ".join((call.__doc__ or "").split())
    return FlowTool(call.__name__, text, arguments, call, needs, destructive)
