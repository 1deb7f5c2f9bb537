"""The tasks of a run, texts that experts write or labels that they answer; and the run as one value."""

from moesaic.tasks.opened import Address, Run, open_run

__all__ = ["Address", "Run", "open_run"]
