"""The state machine: pure, without clock, I/O, await or logging."""
