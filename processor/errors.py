"""The root of what taskflow raises."""


class TaskflowError(Exception):
    """We could not answer. An error says the fact and the consequence.

    A refusal is no error: it is a value that is returned and published.
    """

    retriable = False
    """Whether the same call may succeed later without anyone changing anything."""
