"""Tools for operators. Nothing here takes part in deciding a command."""
