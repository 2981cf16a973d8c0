"""An MCP server: flows as tools, and MCP's tasks as flows."""
