"""What verify knows of managed steps."""
