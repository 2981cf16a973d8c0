"""`taskflow flow`."""
