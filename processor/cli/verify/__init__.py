"""`taskflow verify`."""
