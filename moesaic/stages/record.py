"""Every step of every task as a line of metrics.jsonl, and as TensorBoard scalars where that is installed.

Knows nothing about what is measured. All processes' steps arrive here in one thread, so lines never mix.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moesaic.files import JsonlWriter
from moesaic.stages.progress import Progress


class Recorder:
    """A Progress that writes down what it hands on."""

    def __init__(self, root: Path, inner: Progress):
        self.inner, self.writer = inner, JsonlWriter(root / "metrics.jsonl")
        self.board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(root / "tensorboard"))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
        if self.board:
            self.board.close()

    def note(self, text: str) -> None:
        self.inner.note(text)

    def begin(self, task: str, steps: int) -> None:
        self.inner.begin(task, steps)

    def row(self, task: str, row: dict[str, Any]) -> None:
        if "loss" in row:
            self.writer.append({"task": task, **row})
            if self.board:
                for name in row.keys() - {"step"}:
                    self.board.add_scalar(f"{task}/{name}", row[name], row["step"])
        self.inner.row(task, row)

    def end(self, task: str, text: str) -> None:
        self.inner.end(task, text)
