"""The HTTP API of the views and its pages."""
