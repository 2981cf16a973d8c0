"""The present of flows in a client's memory."""
