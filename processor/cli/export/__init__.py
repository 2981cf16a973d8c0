"""`taskflow export`."""
