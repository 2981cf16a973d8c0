"""The real engine on Kafka in memory and on a clock that can be moved, for tests of services."""

from processor.testing.fake.taskflow import TaskflowFake

__all__ = ["TaskflowFake"]
