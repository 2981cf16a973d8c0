"""The checks of managed steps."""
