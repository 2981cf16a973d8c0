"""The sink: FlowEvents, and the flows and steps that they make, as rows in PostgreSQL."""
