"""A training's state on disk: saved at intervals and when asked to stop, resumed bit by bit.

Knows nothing about models or rows: saves named parameters, an optimiser's moments, a few numbers, and their log.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from moesaic.errors import Interrupted, NonFiniteError, RecipeError, WeightsError, clipped
from moesaic.files import JsonlWriter, check_space, disk, publish, read_manifest, versions, write_manifest
from moesaic.tensors.tensors import read_tensors
from moesaic.train.ranks import ALONE, Ranks
from moesaic.train.states import read_state

Parameters = Mapping[str, nn.Parameter]

KIND = "checkpoint"
PARAMETERS, OPTIMISER, KEPT = "parameters.", "optimiser.", "kept."
SHARE = 0.05  # of the time that saving may take: a large state is saved less often
GROWTH = 200  # steps without an overflow after which a scale is doubled
COPIES = 4  # of the parameters in a state: themselves, two moments, the best


@dataclass
class State:
    """A training between two steps. `kept`: the parameters at the best validation.

    `scale`: the factor of the loss in float16, 0 in other types; `fine`: steps without an overflow since it changed.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    misses: int = 0
    seconds: float = 0.0
    kept: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 0.0
    fine: int = 0

    def rescale(self, overflows: bool) -> None:
        """Halve the scale after an overflow; double it after many steps without one."""
        self.fine = 0 if overflows else self.fine + 1
        if overflows:
            self.scale /= 2
        elif self.fine == GROWTH:
            self.scale, self.fine = self.scale * 2, 0


@dataclass
class Checkpoint:
    """The saved state of one training, at `at`, with its log; the last two versions, in case one is damaged.

    `note`: called with the step from which a training continues.
    `inputs`: everything that the training depends on; `begin` refuses to resume a training that started with other
    inputs. `every`: seconds between two saves, more where saving is slow; 0: every step. `restart`: the advice for a
    training that cannot be resumed. `stopping`: whether a stop was requested; `heed` then raises. `strict`: raise for
    a damaged version instead of warning. `origin`: the tensors that another training left; this one begins with its
    parameters and moments, at step `first`, as if it had made the steps before it itself. `leaves`: keep parameters and
    moments once the training is done, for others that begin with them.
    """

    at: Path
    log_at: Path
    inputs: Mapping[str, Any]
    every: float
    restart: str
    warn: Callable[[str], None]
    note: Callable[[str], None]
    strict: bool
    stopping: Callable[[], bool]
    heed: Callable[[], None]
    origin: Path | None = None
    first: int = 0
    leaves: bool = False

    def __post_init__(self) -> None:
        self._log: JsonlWriter | None = None
        self.pause = self.every

    @property
    def log(self) -> JsonlWriter:
        assert self._log, "the training has begun"
        return self._log

    def begin(self, parameters: Parameters, optimiser: Optimizer, steps: int, ranks: Ranks = ALONE) -> State:
        """Restore parameters and moments, cut the log to the same step, and return the state to continue from.

        `steps`: the length of the training, for the note. `ranks`: the processes that have the training in common; only
        the main one reports, logs and publishes.
        """
        self.ranks = ranks
        size = sum(p.numel() * p.element_size() for p in parameters.values())
        found = ranks.agreed(self.sound)
        if found is None:
            # Two old states and a new one exist while the new one is published.
            check_space(self.at, 3 * COPIES * size, "the states of this training")
            state, rows = State(self.first), 0
            if self.origin:
                tensors = read_tensors(self.origin)
                restore({name: self.placed(name, t, parameters) for name, t in tensors.items()}, parameters, optimiser)
        else:
            folder, manifest = found
            self.compare(manifest)
            state, rows = self.restored(folder, manifest, parameters, optimiser), manifest["log_bytes"]
            if not manifest["done"]:
                self.note(f"continues at step {state.step} of {steps}")
        if ranks.main:
            self._log = JsonlWriter(self.log_at)
            if not self._log.cut(rows):
                self.warn(f"{self.log_at}: rows of the steps up to {state.step} are missing")
        self.saved = time.monotonic()
        return state

    def sound(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest saved state that is undamaged."""
        for folder in versions(self.at):
            try:
                return folder, read_manifest(folder, KIND)
            except WeightsError as error:
                if self.strict:
                    raise
                self.warn(f"damaged: {error}. Resumes from the state saved before it, or else from the first step")
                disk.remove(folder)
        return None

    def refuse_changed(self) -> None:
        """Refuse other settings early; `begin` looks for damage."""
        for folder in versions(self.at)[:1]:
            with suppress(WeightsError):
                self.compare(read_manifest(folder, KIND, verify=False))

    def compare(self, manifest: Mapping[str, Any]) -> None:
        """Refuse to resume with other settings, naming them."""
        differing = list(differences(manifest["inputs"], {**self.inputs, **made_with()}))
        if differing:
            name, old, new = differing[0]
            more = f"; also changed: {', '.join(name for name, _, _ in differing[1:])}" if differing[1:] else ""
            what = f"this training was started with {old} and is now given {new}"
            hint = f"go back to {old} to continue it, or {self.restart}{more}"
            raise RecipeError(what, path=self.at, field=name, hint=hint)

    def after(self, state: State, parameters: Parameters, optimiser: Optimizer, done: bool) -> None:
        """Save between two steps if it is time or the training is done; raise if a stop was requested.

        Processes save and stop together: the main one knows the time, and each may be asked to stop.
        """
        started = time.monotonic()
        due = self.ranks.main and started - self.saved >= self.pause
        stop, due = map(bool, self.ranks.summed(self.stopping(), due))
        if done or stop or due:
            self.save(state, parameters, optimiser, done)
            self.saved = time.monotonic()
            self.pause = max(self.every, (self.saved - started) / SHARE) if self.every else 0.0
        if stop and not done:
            self.heed()
            raise Interrupted(signal.SIGTERM)  # which another process heard

    def save(self, state: State, parameters: Parameters, optimiser: Optimizer, done: bool) -> None:
        """Write the state to disk; for a finished training that leaves nothing to others only its best parameters."""
        tensors = {KEPT + name: tensor for name, tensor in state.kept.items()}
        if not done or self.leaves:
            for name, p in parameters.items():
                moments = {f"{OPTIMISER}{name}.{key}": value for key, value in optimiser.state[p].items()}
                tensors |= {parameter_at(name): p.detach(), **moments}
        for name, tensor in tensors.items():
            if not torch.isfinite(self.ranks.local(tensor)).all():
                raise NonFiniteError(f"cannot save {name} after step {state.step}: it is not finite")
        if not self.ranks.main:
            self.ranks.write(None, tensors)
            return
        numbers = {"step": state.step, "best": state.best if math.isfinite(state.best) else None}
        numbers |= {"best_step": state.best_step, "misses": state.misses}
        numbers |= {"scale": state.scale, "fine": state.fine} if state.scale else {}
        self.log.sync()
        facts = {"kind": KIND, "inputs": {**self.inputs, **made_with()}, "state": numbers, "done": done}
        facts |= {"log_bytes": self.log_at.stat().st_size, "timing": {"seconds": round(state.seconds, 2)}}

        def write(folder: Path) -> None:
            self.ranks.write(folder, tensors)
            write_manifest(folder, facts)

        check_space(self.at, sum(t.numel() * t.element_size() for t in tensors.values()), "the state of this training")
        publish(self.at, write, keep=1)

    def close(self) -> None:
        if self._log:
            self._log.close()

    def restored(
        self, folder: Path, manifest: Mapping[str, Any], parameters: Parameters, optimiser: Optimizer
    ) -> State:
        """Restore parameters and moments from a folder, and return its state."""

        def place(name: str, tensor: Tensor) -> Tensor:
            return self.placed(name, tensor, parameters)

        def empty(name: str, size: torch.Size) -> Tensor:
            return torch.zeros_like(parameters[owner(name)].detach()) if size else torch.zeros(size)

        numbers, tensors = manifest["state"], read_state(folder, place, empty)
        kept = {name.removeprefix(KEPT): t.clone() for name, t in tensors.items() if name.startswith(KEPT)}
        best = math.inf if numbers["best"] is None else numbers["best"]
        if not manifest["done"]:
            restore(tensors, parameters, optimiser)
        seconds = manifest["timing"]["seconds"]
        counted = numbers["step"], best, numbers["best_step"], numbers["misses"], seconds, kept
        return State(*counted, numbers.get("scale", 0.0), numbers.get("fine", 0))

    def placed(self, name: str, tensor: Tensor, parameters: Parameters) -> Tensor:
        """The part of a whole tensor of a state that this process holds."""
        return self.ranks.placed(tensor, parameters[owner(name)])


def restore(tensors: Mapping[str, Tensor], parameters: Parameters, optimiser: Optimizer) -> None:
    """Give parameters their values and, where there are any, their moments."""
    for name, p in parameters.items():
        with torch.no_grad():
            p.copy_(tensors[parameter_at(name)])
        prefix = f"{OPTIMISER}{name}."
        moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            optimiser.state[p] = {key: value.to(p.device, copy=True) for key, value in moments.items()}


def parameter_at(name: str) -> str:
    """The name of a parameter in the tensors of a state."""
    return PARAMETERS + name


def owner(name: str) -> str:
    """The parameter that a tensor of a state belongs to."""
    if name.startswith(OPTIMISER):
        return name.removeprefix(OPTIMISER).rpartition(".")[0]
    return name.removeprefix(PARAMETERS).removeprefix(KEPT)


def made_with() -> dict[str, str]:
    """Versions of the programs whose arithmetic a resumed training must repeat."""
    from moesaic import __version__

    return {"moesaic": __version__, "torch": str(torch.__version__)}


def differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, str, str]]:
    """Each difference of two values of plain data: its path, and both values as text."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif isinstance(old, list) and isinstance(new, list):
        for index, (one, other) in enumerate(zip_longest(old, new)):
            yield from differences(one, other, f"{at}[{index}]")
    elif old != new:
        yield at, clipped(old), clipped(new)
