"""`taskflow bulk` and `taskflow prune`."""
