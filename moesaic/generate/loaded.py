"""A mixture as its users hold it: ask, route, save. What `moesaic.load` gives.

Knows nothing about how it was made.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

from moesaic.compose.classifier import classifies, load_classifier
from moesaic.compose.mixture import load_mixture
from moesaic.data.rows import messages_of
from moesaic.errors import CompatibilityError, DataError, RecipeError, WeightsError
from moesaic.files import MANIFEST, digest, disk, read_manifest, write_new
from moesaic.generate.classify import Classification, classified, routed
from moesaic.generate.engine import Engine
from moesaic.generate.request import Generation, RoutingReport
from moesaic.generate.sample import GREEDY, Sampling
from moesaic.generate.sharing import push_mixture
from moesaic.generate.trace import Trace
from moesaic.hub.locate import locate
from moesaic.model.source import Traffic
from moesaic.residency.fetching import Budget
from moesaic.tokenizer import Conversation, Message
from moesaic.tokenizer.conversation import plain

Turns = Sequence[Mapping[str, Any]] | Conversation
"""A conversation as a caller has it: messages of a role and a content."""

EVALUATION = "evaluation.json"

Several = list[str] | Sequence[Turns] | list[str | Turns]


class WritingMixture:
    """A mixture of language models or adapters, read from a folder: it continues prompts.

    >>> mixture = moesaic.load("runs/demo")
    >>> mixture.generate("What is 3 + 4?").text

    Close a mixture that keeps a trace, or use it as a context manager:

    >>> with moesaic.load("runs/demo", trace="traffic.jsonl") as mixture:
    ...     mixture.generate("What is 3 + 4?")
    """

    def __init__(
        self, folder: Path, trace: Path | None = None, trace_texts: bool = False, budget: Budget | None = None
    ):
        self.evaluation_at, self.budget, self.stored = folder.parent / EVALUATION, budget, load_mixture(folder, budget)
        self.trace = Trace(trace, self.names, digest(self.stored.manifest)[:12], trace_texts) if trace else None
        device, listener = budget.device if budget else None, self.trace.record if self.trace else None
        self.engine = Engine(self.stored.model, self.stored.tokenizer, device, listener, self.stored.source)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts, in the router's order."""
        return self.stored.model.names

    @property
    def traffic(self) -> Traffic:
        """Counts of what was fetched of experts since the mixture was loaded: zero where all are held."""
        return self.stored.source.traffic

    @overload
    def generate(
        self,
        prompt: str | Turns,
        *,
        max_new_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: tuple[str, ...] = ...,
        expert: str | None = ...,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Several,
        *,
        max_new_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: tuple[str, ...] = ...,
        expert: str | None = ...,
    ) -> list[Generation]: ...
    def generate(
        self,
        prompt: str | Turns | Several,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: tuple[str, ...] = (),
        expert: str | None = None,
    ) -> Generation | list[Generation]:
        """Continue a prompt, or each of several. `expert`: who answers in the router's place, "base" included.

        A prompt is a text, which is continued as it is, or a conversation, [{"role": "user", "content": "..."}, ...],
        which the assistant answers: it is written with the base's chat template, and the router reads all of it.
        """
        prompts, alone = asked(prompt)
        made = self.engine.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, expert=expert)
        first = [row[0] for row in made]
        return first[0] if alone else first

    def stream(
        self,
        prompt: str | Turns,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: tuple[str, ...] = (),
        expert: str | None = None,
    ) -> Generator[str, None, Generation]:
        """Yield the text of `generate` for one prompt, piece by piece as it becomes certain; return all of it."""
        ((one, *_), _) = asked(prompt)
        return self.engine.stream(one, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, expert=expert)

    def classify(self, *_: object, **__: object) -> NoReturn:
        """Refuse: labels come from a mixture of experts that classify."""
        raise CompatibilityError("this mixture writes and knows no labels", hint="use generate")

    @overload
    def route(self, text: str | Turns) -> RoutingReport: ...
    @overload
    def route(self, text: Several) -> list[RoutingReport]: ...
    def route(self, text: str | Turns | Several) -> RoutingReport | list[RoutingReport]:
        """Report which expert would answer a text or a conversation, or each of several."""
        prompts, alone = asked(text)
        reports = self.engine.route(prompts)
        return reports[0] if alone else reports

    def close(self) -> None:
        """Close the trace, if there is one: its rows are on the disk then."""
        if self.trace:
            self.trace.close()

    def __enter__(self) -> "WritingMixture":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the mixture into a new folder that holds all it needs; checked by reading it back."""
        # under a budget, to load it again would take the memory twice
        return copied(self.stored.folder, Path(folder), verified if self.budget else load_mixture)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        license: str | None = None,
    ) -> str:
        """Put the mixture, and a model card, into a repository of the hub, in one commit; `load` reads it from there.

        The arguments are those of a model that `load_model` gives. The card shows the verdict of the evaluation beside
        the mixture in its run directory, if that evaluation is of this mixture.
        """
        return push_mixture(self.stored.folder, self.evaluation_at, repository, private, revision, token, license)


class ClassifyingMixture:
    """A mixture of experts that classify, read from a folder: it labels texts.

    >>> mixture = moesaic.load("runs/glue")
    >>> mixture.classify("a text").label
    """

    traffic = Traffic()
    """Nothing is fetched: all experts are held."""

    def __init__(self, folder: Path):
        self.evaluation_at, self.stored = folder.parent / EVALUATION, load_classifier(folder)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts, in the router's order."""
        return self.stored.model.names

    @overload
    def classify(self, text: str | tuple[str, ...], *, expert: str | None = ...) -> Classification: ...
    @overload
    def classify(self, text: list[str | tuple[str, ...]], *, expert: str | None = ...) -> list[Classification]: ...
    def classify(
        self, text: str | tuple[str, ...] | list[str | tuple[str, ...]], *, expert: str | None = None
    ) -> Classification | list[Classification]:
        """Label a text, or each of several; a tuple of two texts is one row. `expert`: who answers."""
        texts = text if isinstance(text, list) else [text]
        found = classified(self.stored, [(one,) if isinstance(one, str) else one for one in texts], expert)
        return found if isinstance(text, list) else found[0]

    def generate(self, *_: object, **__: object) -> NoReturn:
        """Refuse: text comes from a mixture that writes."""
        raise CompatibilityError("this mixture answers with labels and writes nothing", hint="use classify")

    stream = generate

    @overload
    def route(self, text: str | Turns) -> RoutingReport: ...
    @overload
    def route(self, text: Several) -> list[RoutingReport]: ...
    def route(self, text: str | Turns | Several) -> RoutingReport | list[RoutingReport]:
        """Report which expert would answer a text or a conversation, or each of several."""
        prompts, alone = asked(text)
        reports = routed(self.stored, [(one if isinstance(one, str) else plain(one),) for one in prompts])
        return reports[0] if alone else reports

    def __enter__(self) -> "ClassifyingMixture":
        return self

    def __exit__(self, *_: object) -> None: ...

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the mixture into a new folder that holds all it needs; checked by reading it back."""
        return copied(self.stored.folder, Path(folder), load_classifier)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        license: str | None = None,
    ) -> str:
        """Put the mixture, and a model card, into a repository of the hub, in one commit; `load` reads it from there.

        The arguments are those of a model that `load_model` gives. The card shows the verdict of the evaluation beside
        the mixture in its run directory, if that evaluation is of this mixture.
        """
        return push_mixture(self.stored.folder, self.evaluation_at, repository, private, revision, token, license)


def copied(source: Path, target: Path, check: Callable[[Path], object]) -> Path:
    """Copy a mixture's folder into a new one, once `check` has read the copy."""
    files = [path for path in source.rglob("*") if path.is_file()]

    def write(draft: Path) -> None:
        for path in files:
            copy = draft / path.relative_to(source)
            disk.make_all(copy.parent)
            disk.copy(path, copy)
        check(draft)

    return write_new(target, write, sum(path.stat().st_size for path in files), "the mixture")


def verified(folder: Path) -> None:
    """Check every file of a mixture against its hash, without loading any."""
    for manifest in folder.rglob(MANIFEST):
        read_manifest(manifest.parent)


def asked(prompt: str | Turns | Several) -> tuple[list[str | Conversation], bool]:
    """The prompts that a caller gives, and whether it is one by itself. DataError names the message that is none."""
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(next(iter(prompt), None), Mapping | Message):
        return [conversation_of(prompt)], True
    return [one if isinstance(one, str) else conversation_of(one) for one in prompt], False


def conversation_of(turns: Any) -> Conversation:
    """Messages that the assistant is to answer, as whoever asks has them."""
    said = messages_of([turn._asdict() if isinstance(turn, Message) else turn for turn in turns])
    if said and said[-1].role == "assistant":
        raise DataError("nothing is asked", field="messages", expected="a last message that the assistant can answer")
    return said


def load(
    place: str | os.PathLike[str],
    *,
    trace: str | os.PathLike[str] | None = None,
    trace_texts: bool = False,
    ram: str | int | None = None,
    vram: str | int | None = None,
) -> WritingMixture | ClassifyingMixture:
    """Read a mixture from its own folder, from the run directory that it was made in, or from `org/name@revision` of
    the hub. Its experts write, or they classify.

    `trace`: a file to which every decision that a text is generated by is appended (see `generate.trace`), the prompt
    as its SHA-256, or with `trace_texts` as it is. Queries of `route` are not recorded.

    `ram`: memory that weights and answers may take together, as "2GB", on top of what Python takes with all imported.
    Experts that do not fit stay on disk, are fetched when a prompt is theirs, and make room again: `traffic` says how
    often. `vram`: the same of a device, which computes then; `ram` is then what the host keeps for it. Where not even
    the experts of one row fit, MemoryLimitError says what is missing, before anything is loaded.
    """
    if trace_texts and trace is None:
        raise RecipeError("there is no trace to write texts to", field="trace_texts", hint="name the trace's file")
    folder = locate(place).folder
    for candidate in (folder / "mixture", folder):
        if (candidate / "manifest.json").is_file():
            memory = None if ram is None and vram is None else budget_of(candidate, ram, vram)
            if not classifies(candidate):
                return WritingMixture(candidate, None if trace is None else Path(trace), trace_texts, memory)
            if trace is not None:
                raise RecipeError("decisions of a mixture that classifies are not traced", field="trace")
            return ClassifyingMixture(candidate)
    raise WeightsError(
        "no mixture here", path=folder, hint="give a run directory after `compose`, or a folder of save_pretrained"
    )


def budget_of(folder: Path, ram: str | int | None, vram: str | int | None) -> Budget:
    """What is left of the memory said, for a mixture that writes."""
    from moesaic.compose.budget import budget

    if classifies(folder):
        raise RecipeError("a mixture that classifies is held whole", field="ram" if vram is None else "vram")
    return budget(folder, vram, ram)
