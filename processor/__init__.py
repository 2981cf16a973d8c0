"""The processor: decides commands, keeps flows, publishes what happened."""
