"""`taskflow torture`."""
