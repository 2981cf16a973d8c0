"""The service `taskflow signals`: brings an event to the flow that waits for its topic and
correlation id."""
