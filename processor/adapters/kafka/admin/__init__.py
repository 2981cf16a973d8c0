"""Topics, rights and the state of a cluster."""
