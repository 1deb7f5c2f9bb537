"""The command line: parses arguments, calls the package, and turns errors into messages and exit codes.

Nothing imports it. Every verb has a twin in `moesaic` or `moesaic.stages`.
"""
