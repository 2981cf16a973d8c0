"""`taskflow step`."""
