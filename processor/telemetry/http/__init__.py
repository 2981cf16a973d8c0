"""The HTTP server of workers and view workers: which requests are let in, and what each may take.

`server.listening` serves an aiohttp application; every refusal is a problem document (RFC 9457).
"""
