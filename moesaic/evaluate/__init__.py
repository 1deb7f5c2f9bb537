"""Evaluates a mixture: scores with their controls and intervals, a report on the router, and the verdict."""
