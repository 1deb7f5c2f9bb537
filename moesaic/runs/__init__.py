"""A run directory: its parts, its processes, its signals and its logs."""
