"""The command line: parses, calls, prints; the only place where an error becomes a message and an exit code.

Nothing imports it, and it knows nothing that a Python caller would not: every verb has a twin in `moesaic`.
"""
