"""Metrics, traces, logs, and the server of health checks."""
