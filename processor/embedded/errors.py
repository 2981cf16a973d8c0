"""Errors of the embedded broker."""

from processor.errors import TaskflowError


class EmbeddedBrokerError(TaskflowError):
    """The embedded broker cannot run; the message says why and what to do."""


class BadOption(EmbeddedBrokerError):
    """What the environment asks of the JVM is nothing that it understands; nothing was started."""


class JarUnavailable(EmbeddedBrokerError):
    """A jar could not be fetched; those that came are kept for the next try."""

    retriable = True


class JarMismatch(EmbeddedBrokerError):
    """A jar is not the one that was locked; nothing of it was or will be run."""


class DirectoryUnusable(EmbeddedBrokerError):
    """A directory that the embedded broker needs cannot be made or written; no broker was
    started."""


class DataDirInUse(EmbeddedBrokerError):
    """Another embedded broker lives in the directory; it was left alone."""


class PortTaken(EmbeddedBrokerError):
    """Another process listens on the port; no broker was started."""


class BrokerKeepsEnding(EmbeddedBrokerError):
    """The JVM ended again and again; the message carries the last lines of its log."""


class BrokerDidNotStart(EmbeddedBrokerError):
    """The JVM ended or stayed silent; the message carries the last lines of its log."""
