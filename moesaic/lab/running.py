"""Runs a study: its corpus, the sweeps of all arms, its cells, and its result.

The Python twin of the verb. Knows nothing about terminals.
"""

import math
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from moesaic.errors import RecipeError, nearest
from moesaic.files import disk, read_json, read_manifest, write_bytes
from moesaic.lab.cells import Cell, CellPart
from moesaic.lab.corpus import CorpusPart
from moesaic.lab.directory import StudyDir
from moesaic.lab.result import ResultPart
from moesaic.lab.speeds import SpeedsPart
from moesaic.lab.study import Study
from moesaic.lab.sweep import best, further
from moesaic.report.studies import STUDY
from moesaic.runs.jobs import Jobs
from moesaic.runs.part import Part, ensure, graph_of
from moesaic.runs.progress import Progress, Silent
from moesaic.runs.working import working
from moesaic.sections.document import dump


def run_study(
    study: Study,
    root: str | PathLike[str],
    progress: Progress | None = None,
    *,
    strict: bool = False,
    restart: Collection[str] = (),
) -> dict[str, Any]:
    """Train all cells of a study and compare its arms; finished cells are skipped. Returns the figures of its page.

    `strict`: refuse a damaged part instead of making it anew. `restart`: names of cells whose half-done trainings are
    dropped.
    """
    run = StudyDir(study, Path(root).absolute(), strict)
    with working(run.root, study.workers, progress or Silent()) as (shown, jobs):
        write_bytes(run.root / "study.yaml", dump(study.model_dump(mode="json")).encode())
        for name in restart:
            forget(run, name)
        bench = Bench(run, shown, jobs)
        bench.make([CorpusPart(run)])
        trials, sweeps = bench.swept()
        rates = {key: best(tried) for key, tried in sweeps.items()}
        cells = [
            bench.part(Cell(arm, depth, seed, rates[arm, study.swept_for(arm, depth)]))
            for arm in study.arms
            for depth in study.depths_of(arm)
            for seed in study.drawn
        ]
        bench.make(cells)
        first = [part.cell for part in cells if part.cell.seed == study.seed]
        speeds = SpeedsPart(run, first, run.identity(run.corpus_at))
        bench.make([speeds])
        bench.make([ResultPart(run, cells, trials, sweeps, speeds)])
        return read_json(run.result_at / STUDY)


class Bench:
    """A study in progress."""

    def __init__(self, run: StudyDir, progress: Progress, jobs: Jobs):
        self.run, self.progress, self.jobs = run, progress, jobs

    def part(self, cell: Cell) -> CellPart:
        return CellPart(self.run, cell, self.run.identity(self.run.corpus_at))

    def make(self, parts: Sequence[Part]) -> None:
        """Make those of the parts that are not finished."""
        ensure(graph_of(parts), parts, self.progress, self.jobs)

    def swept(self) -> tuple[list[CellPart], dict[tuple[str, int], dict[float, float]]]:
        """Sweep the rates of every arm, each as often as the others, until the best ones are not at an end.

        Returns all trials, and the validation loss of each rate by arm and depth.
        """
        made = list[CellPart]()
        study = self.run.study
        keys = {(arm, study.swept_for(arm, depth)): None for arm in study.arms for depth in study.depths_of(arm)}
        sweeps: dict[tuple[str, int], dict[float, float]] = {key: {} for key in keys}
        rates = {key: list(study.sweep.rates) for key in keys}
        while rates:
            trials = {
                (key, rate): self.part(Cell(*key, study.sweep_seed, rate, swept=True))
                for key, some in rates.items()
                for rate in some
            }
            self.make([*trials.values()])
            made += trials.values()
            for (key, rate), part in trials.items():
                decays = read_manifest(part.at)["decays"]
                sweeps[key][rate] = decays[-1]["validation"] if decays else math.inf
            rates = {key: [rate] for key, rate in further(sweeps, study.sweep.most).items()}
        return made, sweeps


def forget(run: StudyDir, name: str) -> None:
    """Drop the half-done training of a cell."""
    at = run.states_at(run.cell_at(name))
    if not at.exists():
        known = sorted(path.name for path in at.parent.glob("*"))
        what, hint = "no half-done cell", nearest(name, known)
        raise RecipeError(what, field="restart", expected=" or ".join(known) or "none", got=name, hint=hint)
    disk.remove(at)
