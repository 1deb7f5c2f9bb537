"""The state of a continuous training on disk, and the experts that are published from it.

One folder holds all that the next round depends on: parameters and moments of each expert, counters, and the rows read
so far. It is replaced whole, so a round has happened or has not. Knows nothing about how a round is trained or judged.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.data.splits import Domain
from moesaic.errors import DataError, RecipeError, WeightsError
from moesaic.files import digest, gather, read_manifest, sha256_file, versions, write_manifest
from moesaic.files.manifest import MANIFEST, require_types
from moesaic.recipe import Recipe
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Report, threads
from moesaic.runs.progress import Progress
from moesaic.stages.experts import ExpertPart, Trial, publish_expert, trials_of
from moesaic.tasks import Run
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.train.checkpoint import PARAMETERS, differences, parameter_at

KIND = "continuous"
ROOM = "continuous"
"""The folder of a run directory that holds everything about its continuous training."""

Rows = dict[str, dict[str, list[int]]]
"""Domain -> key of its files -> the number of different rows that were read of each file."""


@dataclass(frozen=True)
class Turn:
    """One expert between two rounds.

    `trial`: the settings that it was trained with; `steps`: those of all its rounds; `misses`: the rounds since it was
    last kept or rows were added; `kept`: the round in which it was last kept, 0 for none.
    """

    trial: str
    steps: int = 0
    misses: int = 0
    kept: int = 0


@dataclass(frozen=True)
class State:
    """A continuous training between two rounds.

    `round`: the number of rounds done; `last`: the expert of the last one; `line`: its row in the log. `start`: the
    loss of every validation row through the mixture when its domain joined. `digests`: hashes of each domain's rows;
    `sections`: the keys that each expert was trained by. `tensors`: the file of each expert's parameters and moments.
    """

    round: int
    last: str | None
    experts: dict[str, Turn]
    rows: Rows
    digests: dict[str, str]
    sections: dict[str, dict[str, Any]]
    start: dict[str, dict[str, float]]
    line: dict[str, Any] | None
    tensors: dict[str, Path]


class ContinuedPart(ExpertPart):
    """An expert whose training goes on: published from the tensors of a round, measured anew when rows are added."""

    def __init__(self, run: Run, name: str, state: State):
        super().__init__(run, name)
        self.state, self.tensors = state, state.tensors[name]

    def inputs(self) -> dict[str, Any]:
        require_same_section(self.source, self.name, self.state)
        return {**super().inputs(), "continued": self.sha256}

    @cached_property
    def sha256(self) -> str:
        return sha256_file(self.tensors)

    def work(self) -> None:
        return None

    def make(self, report: Report) -> None:
        report.begin(1)
        trial = trial_of(self.source, self.name, self.state.experts[self.name].trial)
        trainer, values = self.source.task.trainer(trial.plan), values_in(self.tensors)
        with threads(1):  # as the experts are verified
            best = trainer.validated(trial.plan, values)
            made = trainer.made(trial.plan, values, best)
        facts = {"rows": trainer.rows(), "metrics": made.metrics, "logs": {}}
        publish_expert(self, trial, made, facts, values)
        report.end(made.summary)


def expert_part(run: Run, name: str, state: State | None) -> ExpertPart:
    """The part of an expert or a control; of an expert that is trained continuously, the one that its state says."""
    if state is None or name not in state.experts:
        return ExpertPart(run, name)
    return ContinuedPart(run, name, state)


def trial_of(run: Run, name: str, label: str) -> Trial:
    """The trial of this label among those of an expert."""
    found = {trial.label: trial for trial in trials_of(run, name)}
    if label not in found:
        what, hint = "the settings that this expert was trained with are tried no more", f"try them again: {label}"
        raise RecipeError(what, field=f"experts.{name}", expected=label, got=" or ".join(found), hint=hint)
    return found[label]


def trial_in(run: Run, name: str) -> str:
    """The label of the trial that a published expert is the best of."""
    folder = run.dir.part_at(name)
    manifest = read_manifest(folder, "expert")
    require_types(folder / MANIFEST, manifest, {"trial": str})
    return manifest["trial"]


def values_in(tensors: Path) -> dict[str, Tensor]:
    """The parameters in a file of parameters and moments."""
    found = read_tensors(tensors)
    return {name.removeprefix(PARAMETERS): one for name, one in found.items() if name.startswith(PARAMETERS)}


# --- on disk


def state_at(run: RunDir) -> Path:
    return run.root / ROOM / "state"


def read_state(run: RunDir, progress: Progress | None = None) -> State | None:
    """The newest sound state; None where no continuous training was begun. `progress` hears about damaged ones."""
    at = state_at(run)
    found = versions(at)
    for folder in found:
        try:
            manifest = read_manifest(folder, KIND)
        except WeightsError as error:
            if run.strict or folder == found[-1]:
                raise
            if progress:
                progress.warn(f"damaged: {error}. Resumes from the state before it")
            continue
        values = {one.name: manifest[one.name] for one in fields(State) if one.name != "tensors"}
        experts = {name: Turn(**turn) for name, turn in values.pop("experts").items()}
        return State(**values, experts=experts, tensors={name: folder / tensors_at(name) for name in experts})
    return None


def publish_state(run: RunDir, state: State, fresh: Mapping[str, Mapping[str, Tensor]]) -> State:
    """Replace the state; `fresh`: the parameters of experts that have no file yet. Returns it as it is on disk."""
    facts = {key: value for key, value in asdict(state).items() if key != "tensors"}

    def write(folder: Path) -> None:
        gather({tensors_at(name): file for name, file in state.tensors.items() if name in state.experts}, folder)
        for name, values in fresh.items():
            write_tensors(folder / tensors_at(name), {parameter_at(at): one.detach() for at, one in values.items()})
        write_manifest(folder, {"kind": KIND, **facts})

    size = sum(one.numel() * one.element_size() for values in fresh.values() for one in values.values())
    run.publish(state_at(run), write, size, keep=1)
    folder = versions(state_at(run))[0]
    return replace(state, tensors={name: folder / tensors_at(name) for name in state.experts})


def tensors_at(name: str) -> str:
    return f"{name}.safetensors"


# --- what a state was made from


def section_of(run: Run, name: str) -> dict[str, Any]:
    """Everything that an expert's parameters fit: its keys of the recipe, and its base."""
    inputs = ExpertPart(run, name).inputs()
    return {key: value for key, value in inputs.items() if key not in ("data", "train", "router")}


def require_same_section(run: Run, name: str, state: State) -> None:
    """Refuse to continue an expert by other keys than it was trained by, naming the first that differs."""
    for field, old, new in differences(state.sections[name], section_of(run, name)):
        what = f"'{name}' is trained continuously with {old} and is now given {new}"
        hint = f"go back to {old}; or remove {run.dir.root / ROOM} to train all experts anew"
        raise RecipeError(what, path=state_at(run.dir), field=field, hint=hint)


def limited(recipe: Recipe, rows: Rows) -> Recipe:
    """The recipe that reads as many rows of each file as `rows` says; domains without an entry are read whole."""
    experts = dict(recipe.experts)
    for name, read in rows.items():
        if name in experts and (data := experts[name].data):
            sources = {
                key: [one.model_copy(update={"limit": n}) for one, n in zip(getattr(data, key), some, strict=False)]
                for key, some in read.items()
            }
            experts[name] = experts[name].model_copy(update={"data": data.model_copy(update=sources)})
    return recipe.model_copy(update={"experts": experts})


def content_of(domain: Domain) -> str:
    """The hash of all rows of a domain in their splits."""
    return digest([domain.digest, [row.told for row in domain.test]])


def require_unchanged(domains: Mapping[str, Domain], state: State) -> None:
    """Refuse files in which a row that was read before has changed or is gone."""
    for name, told in state.digests.items():
        if name in domains and content_of(domains[name]) != told:
            what = f"rows of '{name}' that were read before have changed or are gone"
            raise DataError(
                what, field=f"experts.{name}.data", hint="rows are only appended to files; restore the others"
            )


def require_appended(old: Domain, new: Domain) -> None:
    """Refuse rows that were appended to one split and are in another one already."""
    for split in ("train", "validation", "test"):
        stays = {row.group for row in getattr(new, split)}
        moved = next((row for row in getattr(old, split) if row.group not in stays), None)
        if moved:
            now = next(
                (to for to in ("test", "validation") if moved.group in {e.group for e in getattr(new, to)}), None
            )
            what = f"rows were appended that move a row of '{old.name}' out of {split}"
            got = f"{moved.source}, now in {now}" if now else f"{moved.source}, now in another domain's test, or gone"
            hint = "remove the appended copy; with few rows, name a file for validation instead of a share"
            raise DataError(what, field=f"experts.{old.name}.data", got=got, hint=hint)
