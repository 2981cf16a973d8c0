"""Checks of what the processor says about each record of its sources."""
