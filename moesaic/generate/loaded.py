"""A mixture as its users hold it: ask, route, save. What `moesaic.load` gives.

Knows nothing about how it was made.
"""

import os
import shutil
from pathlib import Path
from typing import overload

from moesaic.errors import StorageError, WeightsError
from moesaic.generate.engine import Engine, Generation, RoutingReport
from moesaic.generate.sample import GREEDY, Sampling
from moesaic.weights.mixture import load_mixture


class LoadedMixture:
    """A mixture read from a folder.

    >>> mixture = moesaic.load("runs/demo")
    >>> mixture.generate("What is 3 + 4?").text
    """

    def __init__(self, folder: Path):
        self.stored = load_mixture(folder)
        self.engine = Engine(self.stored.model, self.stored.tokenizer)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts, in the router's order."""
        return self.stored.model.names

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: tuple[str, ...] = ...,
        expert: str | None = ...,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        max_new_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: tuple[str, ...] = ...,
        expert: str | None = ...,
    ) -> list[Generation]: ...
    def generate(
        self,
        prompt: str | list[str],
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: tuple[str, ...] = (),
        expert: str | None = None,
    ) -> Generation | list[Generation]:
        """What the mixture writes after a prompt, or after each of several. `expert`: who answers, "base" included."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        made = self.engine.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, expert=expert)
        first = [row[0] for row in made]
        return first[0] if isinstance(prompt, str) else first

    @overload
    def route(self, text: str) -> RoutingReport: ...
    @overload
    def route(self, text: list[str]) -> list[RoutingReport]: ...
    def route(self, text: str | list[str]) -> RoutingReport | list[RoutingReport]:
        """Who would answer a text, or each of several."""
        reports = self.engine.route([text] if isinstance(text, str) else text)
        return reports[0] if isinstance(text, str) else reports

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the mixture into a new folder that holds all it needs; checked by reading it back."""
        target = Path(folder)
        if target.exists():
            raise StorageError("there is something already", path=target, hint="name a folder that does not exist")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copytree(self.stored.folder, draft)
            load_mixture(draft)
            draft.rename(target)
        except OSError as error:
            raise StorageError("the mixture could not be copied", path=target, got=str(error)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return target


def load(path: str | os.PathLike[str]) -> LoadedMixture:
    """Read a mixture from its own folder, or from the run directory that it was made in."""
    folder = Path(path)
    for candidate in (folder / "mixture", folder):
        if (candidate / "manifest.json").is_file():
            return LoadedMixture(candidate)
    raise WeightsError(
        "no mixture here", path=folder, hint="give a run directory after `compose`, or a folder of save_pretrained"
    )
