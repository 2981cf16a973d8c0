"""Who we are to the brokers, and what they allow us."""
