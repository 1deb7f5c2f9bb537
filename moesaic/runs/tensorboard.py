"""Every step of every task as TensorBoard scalars, where TensorBoard is installed.

Knows nothing about what is measured, nor about the logs, which every training writes itself.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moesaic.runs.progress import Progress


class Recorder:
    """A Progress that passes every report on and writes the measured values for TensorBoard."""

    def __init__(self, root: Path, inner: Progress):
        self.root, self.inner = root, inner
        self.boards: dict[str, Any] = {}

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        for board in self.boards.values():
            board.close()

    def note(self, text: str) -> None:
        self.inner.note(text)

    def warn(self, text: str) -> None:
        self.inner.warn(text)

    def begin(self, task: str, steps: int) -> None:
        self.inner.begin(task, steps)

    def row(self, task: str, row: dict[str, Any]) -> None:
        if "loss" in row and find_spec("tensorboard"):
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self.board(task, row["step"]).add_scalar(name, value, row["step"])
        self.inner.row(task, row)

    def board(self, task: str, step: int) -> Any:
        """The task's board, purged of steps that are repeated."""
        if task not in self.boards:
            from torch.utils.tensorboard import SummaryWriter

            self.boards[task] = SummaryWriter(str(self.root / "tensorboard" / task), purge_step=step)
        return self.boards[task]

    def end(self, task: str, text: str) -> None:
        self.inner.end(task, text)
