"""Authenticate to the brokers, and find out what they allow."""
