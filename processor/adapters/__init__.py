"""What talks to the outside: Kafka, and the local table."""
