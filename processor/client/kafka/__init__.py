"""The client's connection to Kafka, by aiokafka."""
