"""A group member: composition root, worker, supervisor of processes."""
