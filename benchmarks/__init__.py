"""Ratios against named peers, alternating in one process, medians over rounds. Each module writes one result file."""
