"""`taskflow deadletters`."""
