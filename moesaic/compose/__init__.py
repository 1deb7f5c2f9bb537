"""Joining parts: mixtures as folders, models merged into one, and plans of what either takes."""
