"""Failpoints: break a worker at a named point. For tests only; TASKFLOW_FAULTS."""

from processor.testing.failpoints.points import Failpoints, parse_faults
from processor.testing.failpoints.wrappers import FailpointWrappers

__all__ = ["FailpointWrappers", "Failpoints", "parse_faults"]
