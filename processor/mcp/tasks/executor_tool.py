"""ExecutorTool: a tool that executors do as a managed step; read from a file of tools."""

from pathlib import Path
from typing import Annotated, Any, Final, Self

import mcp_types as types
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from processor.errors import TaskflowError

RESERVED: Final = frozenset({"inputResponses", "requestState"})
"""Arguments that taskflow adds to the step after a question; a tool must not have them."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class ToolsUnusable(TaskflowError):
    """The file of tools cannot be used; nothing was started."""


class ExecutorTool(BaseModel):
    """A tool as in `tools/list`, with the task and the limits of its steps."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )

    name: Name
    title: str | None = None
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None = None
    annotations: types.ToolAnnotations | None = None
    task: Annotated[str, Field(min_length=1, max_length=256)] = ""
    """The task of its steps; by default the tool's name."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    lease_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = 300_000
    backoff_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 1_000

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.input_schema.get("type") != "object":
            raise ValueError("inputSchema must have the type object")
        if taken := RESERVED & self.input_schema.get("properties", {}).keys():
            raise ValueError(f"inputSchema may have no property {min(taken)}")
        try:
            Draft202012Validator.check_schema(self.input_schema)
        except SchemaError as error:
            raise ValueError(f"inputSchema is no JSON Schema: {error.message}") from None
        return self

    @property
    def step_task(self) -> str:
        return self.task or self.name

    def published(self) -> types.Tool:
        """The tool as in `tools/list`."""
        return types.Tool(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=self.input_schema,
            output_schema=self.output_schema,
            annotations=self.annotations,
        )

    def fault(self, arguments: dict[str, Any]) -> str | None:
        """Return the fault of `arguments` against the input schema; None if they are valid."""
        error = best_match(Draft202012Validator(self.input_schema).iter_errors(arguments))
        return None if error is None else f"{error.json_path}: {error.message}"


class ToolFile(BaseModel):
    """A file of tools: JSON, `{"tools": [...]}`."""

    model_config = ConfigDict(extra="forbid")

    tools: list[ExecutorTool]


def read_tools(path: Path) -> list[ExecutorTool]:
    """Read a file of tools. Raises ToolsUnusable."""
    try:
        tools = ToolFile.model_validate_json(path.read_bytes()).tools
    except OSError as error:
        raise ToolsUnusable(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ToolsUnusable(f"{path} is no file of tools: {where}: {first['msg']}.") from None
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ToolsUnusable(f"{path} has two tools {twice}.")
    return tools
