"""CurrentFlows: the present flows in a client's memory."""
