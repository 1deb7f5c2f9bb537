"""Asks a mixture questions: scores with their controls and intervals, the router's own report, and the verdict."""
