"""`taskflow send`: publish commands from JSON lines."""
