"""Joins parts: mixtures as folders, models merged into one, and plans of the memory that either takes."""
