"""Access to a view worker: readers with a token, and the other view workers."""
