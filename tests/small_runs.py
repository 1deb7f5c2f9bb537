"""A run as a test opens it, beside the verbs: its texts, its models, its task, and which of its parts are stale."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.recipe import Recipe
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Progress, Silent
from moesaic.stages.verbs import Bench
from moesaic.tasks import Address, Run, open_run


class Told(Silent):
    """A Progress that remembers notes and warnings."""

    def __init__(self) -> None:
        self.notes, self.warnings = list[str](), list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def two_experts(
    pretrain: Mapping[str, int], train: Mapping[str, int], router: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The recipe of two experts, adds and says, over a nano base. `pretrain`, `train`: steps, batch and length."""
    return {
        "name": "small",
        "workers": 1,
        "base": {"size": "nano", "vocab_size": 300, "pretrain": {**pretrain, "lr": 1e-2, "evaluate_every": 0}},
        "train": {**train, "lr": [1e-2, 3e-2], "evaluate_every": 0},
        "experts": {
            name: {"kind": "lora", "rank": 2, "data": {"train": f"{name}.jsonl", "test": f"{name}_test.jsonl"}}
            for name in ("adds", "says")
        },
        "router": {"kind": "linear", "feature": "embedding_mean", **router},
        **more,
    }


def opened(recipe: Recipe, root: Path) -> Run:
    """The run of a recipe in a folder; nothing is read yet."""
    return open_run(Address(RunDir(recipe, root)))


def bench_of(run: Run, told: Progress | None = None) -> Bench:
    """The parts of a run, made in this process."""
    told = told or Silent()
    return Bench(run, told, Jobs(1, told))


def stale(run: Run, told: Progress | None = None) -> set[str]:
    """The names of the experts, controls and routers that the run would make anew."""
    parts = bench_of(run, told).parts
    return {
        part.name for stage in ("experts", "router") for part in parts[stage] if not part.finished(told or Silent())
    }


def silent() -> Report:
    """A report that nobody hears."""
    return Jobs(1, Silent()).report("test")
