"""Events that name a wait by its topic and correlation id, brought to the flow that waits."""
