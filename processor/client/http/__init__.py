"""The read side, asked over HTTP."""
