"""Ratios against named peers, runs of recipes side by side, and disasters rehearsed: the pages of `results`."""
