"""Implement the engine's ports on Kafka and SQLite."""
