"""`taskflow top`."""
