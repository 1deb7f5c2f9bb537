"""The directory of a study: where the corpus, every cell and the result are published.

Nothing that was made is overwritten: each new version of a part stands beside the old ones. Knows nothing about their
contents.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moesaic.lab.study import Study
from moesaic.runs.directory import PartsDir


@dataclass(frozen=True)
class StudyDir(PartsDir):
    """A study and the folder of its run."""

    study: Study
    root: Path
    strict: bool = False

    @property
    def seed(self) -> int:
        return self.study.seed

    @property
    def checkpoint_seconds(self) -> float:
        return self.study.checkpoint_seconds

    @property
    def corpus_at(self) -> Path:
        return self.root / "corpus"

    @property
    def result_at(self) -> Path:
        return self.root / "result"

    def cell_at(self, name: str) -> Path:
        return self.root / "cells" / name

    def publish_version(self, at: Path, write: Callable[[Path], None], needed_bytes: int) -> None:
        """Publish a part and keep all its older versions."""
        self.publish(at, write, needed_bytes, keep=sys.maxsize)
