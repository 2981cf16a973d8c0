"""`taskflow doctor`."""
