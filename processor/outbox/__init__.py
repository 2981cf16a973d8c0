"""The outbox: commands as rows of a producer's database, relayed to Kafka, with their outcomes."""
