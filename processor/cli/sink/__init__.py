"""`taskflow sink`."""
