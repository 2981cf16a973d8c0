"""`taskflow deploy`: manifests and units."""
