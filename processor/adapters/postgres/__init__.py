"""PostgreSQL: connections, versioned tables, and services between Kafka and a database."""
