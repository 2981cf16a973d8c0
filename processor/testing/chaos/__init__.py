"""Load, random faults and a verdict: what proves on a user's own machine that nothing is lost."""
