"""Kafka and a partition's table in memory, as the ports promise them."""
