"""Members of the consumer group."""
