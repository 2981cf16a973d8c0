"""Crash points: a worker that breaks where it is told to. For tests only; TASKFLOW_FAULTS."""

from processor.testing.failpoints.points import Failpoints, parse_faults
from processor.testing.failpoints.wrappers import FailpointWrappers

__all__ = ["FailpointWrappers", "Failpoints", "parse_faults"]
