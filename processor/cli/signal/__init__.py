"""`taskflow signal`."""
