"""Recorded commands through the code at hand, and what it decides in another way."""
