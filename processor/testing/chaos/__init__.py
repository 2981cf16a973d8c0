"""Load, random faults and a verdict, on a user's own machine."""
