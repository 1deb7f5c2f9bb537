"""Mixtures of experts that exist already."""
