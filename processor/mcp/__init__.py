"""Flows as tools of the Model Context Protocol, and its tasks as flows."""
