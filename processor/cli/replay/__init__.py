"""`taskflow replay`."""
