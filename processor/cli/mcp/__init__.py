"""`taskflow mcp`."""
