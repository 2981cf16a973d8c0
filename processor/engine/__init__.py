"""Turn records into a write set: decode, decide, evolve, encode. Pure."""
