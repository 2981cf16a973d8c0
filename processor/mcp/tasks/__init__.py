"""Tools that executors do: each call is a flow and a task of MCP's Tasks extension."""
