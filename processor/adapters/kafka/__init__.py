"""Kafka, as aiokafka sees it. Only `bootstrap` and the program import from here."""

from processor.adapters.kafka.header_names import read_any_header_name

read_any_header_name()
