"""Apache Kafka by aiokafka: the ports of the engine, and what operators ask of a cluster."""
