"""Errors of PostgreSQL that the processor explains, each in one sentence."""

from processor.errors import TaskflowError


class DatabaseUnavailable(TaskflowError):
    """PostgreSQL does not answer, or not now; nothing of the transaction is written."""

    retriable = True


class DatabaseRefused(TaskflowError):
    """PostgreSQL does not take what it is asked, or its tables are not ours; somebody must act."""
