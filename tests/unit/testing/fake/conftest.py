"""The plugin's fixtures, also where the installed package does not name it yet."""

from processor.testing.plugin import taskflow_fake

__all__ = ["taskflow_fake"]
