"""What the service bears: many who poll, upload, post, list and connect, each against real processes of its own.

A part starts a service in an empty folder with its defaults (SQLite, a stored API key), presses it, and compares what
it saw with what is promised. ``python -m benchmarks.load`` runs them one after the other.
"""
