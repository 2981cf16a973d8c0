"""FlowTool: a tool on flows with its arguments and the permission that it needs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import mcp_types as types
from pydantic import BaseModel, ConfigDict, Field

from processor.contract.values import Uuid
from processor.mcp.flow_session import FlowSession


class Permission(IntEnum):
    """What a server's tools may do; each value includes those before it."""

    READ = 0
    WRITE = 1
    OPERATE = 2


class Arguments(BaseModel):
    """Arguments of a tool; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


FlowId = Annotated[Uuid, Field(description="The flow's id.")]
Revision = Annotated[
    int,
    Field(
        ge=0,
        description="The flow's revision as you saw it last. If it has changed since, nothing is "
        "done, and the result has the present one.",
    ),
]
A = TypeVar("A", bound=Arguments)
Call = Callable[[FlowSession, A], Awaitable[types.CallToolResult]]


@dataclass(frozen=True, slots=True)
class FlowTool:
    """A tool on flows; `call` takes the session and the arguments, and returns refusals, too."""

    name: str
    description: str
    arguments: type[Arguments]
    call: Call[Any]
    needs: Permission
    destructive: bool

    def published(self) -> types.Tool:
        """The tool as in `tools/list`."""
        reads = self.needs is Permission.READ
        return types.Tool(
            name=self.name,
            description=self.description,
            input_schema=self.arguments.model_json_schema(),
            annotations=types.ToolAnnotations(
                read_only_hint=reads,
                destructive_hint=self.destructive,
                # A repeated call changes nothing.
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
    """Return the tool of a function, with the function's name and docstring."""
    text = " ".join((call.__doc__ or "").split())
    return FlowTool(call.__name__, text, arguments, call, needs, destructive)
