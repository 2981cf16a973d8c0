"""Test and break a deployment: Kafka in memory, failpoints and chaos runs."""
