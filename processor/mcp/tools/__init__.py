"""The tools: what a model may ask for, and what it is shown."""
