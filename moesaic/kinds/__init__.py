"""The kinds of experts."""
