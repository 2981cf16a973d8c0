"""Bring a table to where the topics are."""
