"""Errors of PostgreSQL that the processor explains, each in one sentence."""

from processor.errors import TaskflowError


class DatabaseUnavailable(TaskflowError):
    """PostgreSQL does not respond now; nothing of the transaction is written."""

    retriable = True


class DatabaseRefused(TaskflowError):
    """PostgreSQL refuses a statement, or its tables are not taskflow's; an operator must act."""
