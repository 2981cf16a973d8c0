"""The context in which the SDK hands a request to its handler."""

from typing import Any, TypeAlias

from mcp.server.context import ServerRequestContext

RequestContext: TypeAlias = ServerRequestContext[Any, Any]
