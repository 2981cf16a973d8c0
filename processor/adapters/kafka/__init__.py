"""Kafka, as aiokafka sees it. Only `bootstrap` and the program import from here."""
