"""`taskflow schemas`."""
