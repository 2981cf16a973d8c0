"""`taskflow outbox`."""
