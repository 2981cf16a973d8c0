"""`taskflow rebuild`."""
