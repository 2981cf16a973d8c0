"""The commands that a partition processor sends to itself, and when."""
