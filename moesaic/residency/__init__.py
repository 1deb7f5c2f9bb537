"""Loads experts into memory for as long as they compute."""
