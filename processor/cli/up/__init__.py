"""`taskflow up`."""
