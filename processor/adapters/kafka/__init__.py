"""Kafka, as aiokafka sees it. Only `bootstrap` and the program import from here."""

from processor.adapters.kafka.record_decoder import read_whatever_comes

read_whatever_comes()
