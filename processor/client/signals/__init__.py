"""The client for sending signals."""
