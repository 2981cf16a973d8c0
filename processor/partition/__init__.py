"""The life of one partition: take-over, loop, timers, retention, standby."""
