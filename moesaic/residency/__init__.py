"""Experts in memory while they compute, and on their way there."""
