"""The read model: rows made of FlowEvents."""
