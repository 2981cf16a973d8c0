"""`taskflow demo`."""
