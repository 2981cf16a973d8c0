"""Partition owners through seeded histories of faults; see README.md."""
