"""Read committed records back, between offsets."""
