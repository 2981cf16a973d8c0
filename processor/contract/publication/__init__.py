"""Generate what `schemas/` publishes from the models."""
