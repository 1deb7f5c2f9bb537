"""The directory of a run: the path of each part, a check that a part is finished, and the way to publish one.

Knows nothing about texts, models or the contents of a part; a directory can be sent to other processes.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import WeightsError
from moesaic.files import check_space, digest, disk, publish, read_manifest
from moesaic.recipe import Recipe
from moesaic.runs.progress import Progress


class PartsDir(ABC):
    """The folder in which the parts of a run are published, whatever document decides them.

    `strict`: refuse damaged parts rather than make them anew.
    """

    root: Path
    strict: bool

    @property
    @abstractmethod
    def seed(self) -> int:
        """The seed of all parts."""

    @property
    @abstractmethod
    def checkpoint_seconds(self) -> float:
        """Seconds between two saved states of a training."""

    def title(self, at: Path) -> Path:
        """The path of a part in the run directory, without its version: `experts/math`, `router`."""
        path = at.relative_to(self.root)
        return path.parent if path.name == "best" else path

    def states_at(self, at: Path) -> Path:
        """The folder of the states of a part's trainings, until the part is finished."""
        return self.root / "checkpoints" / self.title(at)

    def logs_at(self, at: Path) -> Path:
        """The folder of the logs of a part's trainings, a file for each trial."""
        return self.root / "metrics" / self.title(at)

    def logged(self, at: Path) -> dict[str, int]:
        """The number of rows of each log of a part's trainings, by the name of the file."""
        return {log.name: log.read_bytes().count(b"\n") for log in sorted(self.logs_at(at).glob("*.jsonl"))}

    def lost_logs(self, at: Path) -> Iterator[str]:
        """Describe each log of a finished part that has fewer rows than its manifest counted, or is gone."""
        found = self.logged(at)
        for name, rows in read_manifest(at, verify=False).get("logs", {}).items():
            if found.get(name, 0) < rows:
                place = (self.logs_at(at) / name).relative_to(self.root).as_posix()
                yield f"{place}: {found.get(name, 'none')} of {rows} rows"

    def forget(self, at: Path) -> None:
        """Drop the states of a part's trainings."""
        disk.remove(self.states_at(at))

    def key(self, stage: str, **inputs: Any) -> str:
        """The hash of everything that a part depends on."""
        return digest({"stage": stage, "seed": self.seed, **inputs})

    def made_from(self, at: Path, manifest: Callable[[Path], dict[str, Any]], progress: Progress) -> str | None:
        """The key in the manifest of a part's sound version; None without one. A damaged version is reported."""
        try:
            return manifest(at).get("stage_key")
        except WeightsError as error:
            if self.strict:
                raise
            progress.warn(f"damaged, to be made anew: {error}")
            return None

    def identity(self, at: Path) -> Any:
        """The key of a finished part, or the hashes of its files where it has no key."""
        manifest = read_manifest(at)
        return manifest.get("stage_key") or manifest["files"]

    def publish(self, at: Path, write: Callable[[Path], None], needed_bytes: int, keep: int = 0) -> None:
        """Publish a part, if the disk has room for it. `keep`: the number of older versions that stay."""
        disk.make_all(at.parent)
        check_space(at, needed_bytes, at.relative_to(self.root).as_posix())
        publish(at, write, keep)


@dataclass(frozen=True)
class RunDir(PartsDir):
    """A recipe and the folder of its run."""

    recipe: Recipe
    root: Path
    strict: bool = False

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def checkpoint_seconds(self) -> float:
        return self.recipe.checkpoint_seconds

    @property
    def base_at(self) -> Path:
        return self.root / "base"

    def part_at(self, contender: str) -> Path:
        """The folder of an expert, or of a control that is trained as one."""
        room = "experts" if contender in self.recipe.experts else "controls"
        return self.root / room / contender / "best"

    def router_at(self, label: str) -> Path:
        """The folder of a router: the mixture's own, or one that is only compared."""
        return self.root / "router" if label == "router" else self.root / "controls" / "routers" / label

    @property
    def mixture_at(self) -> Path:
        return self.root / "mixture"

    @property
    def evaluation_at(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def rejects_at(self) -> Path:
        return self.root / "rejects.jsonl"

    @property
    def rows_at(self) -> Path:
        """The folder of the rows of files, and of their tokens, as they were read."""
        return self.root / "rows"

    def from_data(self, path: str) -> str:
        """The path of a file of rows from the folder of the data, as files that people share name it."""
        return os.path.relpath(path, self.recipe.data_root or "")
