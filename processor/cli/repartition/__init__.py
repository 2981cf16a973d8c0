"""`taskflow repartition`."""
