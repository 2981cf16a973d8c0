"""Answer queries from the read model and from other view workers."""
