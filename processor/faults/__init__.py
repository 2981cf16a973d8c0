"""Crash points: a worker that breaks where it is told to. For tests only; TASKFLOW_FAULTS."""

from processor.faults.kit import Kit
from processor.faults.points import Points, parse_faults

__all__ = ["Kit", "Points", "parse_faults"]
