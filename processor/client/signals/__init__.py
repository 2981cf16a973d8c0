"""The client of those that send signals."""
