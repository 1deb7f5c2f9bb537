"""Loaded mixtures for users, with their calls: generate, classify, route, save and push. The result of `moesaic.load`.

Knows nothing about how mixtures are made.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Unpack, overload

import torch

from moesaic.artefacts.inspect import unjoined
from moesaic.compose.classifier import classifies, load_classifier
from moesaic.compose.mixture import load_mixture
from moesaic.data.rows import messages_of
from moesaic.errors import CompatibilityError, DataError, RecipeError, WeightsError
from moesaic.files import MANIFEST, digest, disk, read_manifest, write_new
from moesaic.generate.classify import Classification, classified, routed
from moesaic.generate.engine import Engine
from moesaic.generate.request import Generation, RoutingReport, Settings
from moesaic.generate.sample import GREEDY, Sampling
from moesaic.generate.sharing import push_mixture
from moesaic.generate.trace import Trace
from moesaic.hub.locate import locate
from moesaic.model.source import Traffic
from moesaic.residency.fetching import Budget
from moesaic.tokenizer import Conversation, Message
from moesaic.tokenizer.conversation import plain

Turns = Sequence[Mapping[str, Any]] | Conversation
"""A conversation: messages with a role and a content."""
Several = list[str] | Sequence[Turns] | list[str | Turns]
Texts = str | tuple[str, ...]
"""A text, or a row of two."""

PROMPT = "a text, a list of {role, content}, or an iterable of these"

M = TypeVar("M", bound="LoadedMixture")


class LoadedMixture(ABC):
    """A mixture that was loaded from `folder`; also a context manager, which closes it."""

    folder: Path
    names: tuple[str, ...]
    """The experts, in the router's order."""
    trace: Trace | None = None

    @overload
    def route(self, text: str | Turns) -> RoutingReport: ...
    @overload
    def route(self, text: Several) -> list[RoutingReport]: ...
    def route(self, text: str | Turns | Several) -> RoutingReport | list[RoutingReport]:
        """The router's decision about a text or a conversation, or about each of several."""
        prompts, single = prompts_of(text)
        reports = self.reports(prompts)
        return reports[0] if single else reports

    @abstractmethod
    def reports(self, prompts: list[str | Conversation]) -> list[RoutingReport]:
        """The router's decision about each prompt."""

    @abstractmethod
    def check(self, copy: Path) -> object:
        """Raise for a damaged copy of the mixture's folder."""

    def close(self) -> None:
        """End the trace, if any, and sync its rows to disk."""
        if self.trace:
            self.trace.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the complete mixture into a new folder, and check the copy."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]

        def write(draft: Path) -> None:
            for path in files:
                copy = draft / path.relative_to(self.folder)
                disk.make_all(copy.parent)
                disk.copy(path, copy)
            self.check(draft)

        return write_new(Path(folder), write, sum(path.stat().st_size for path in files), "the mixture")

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        license: str | None = None,
    ) -> str:
        """Push the mixture and a model card to a repository of the hub, in one commit, for `load` to read.

        The arguments are those of a model from `load_model`. The card shows the verdict of the run's evaluation, if
        the run directory has an evaluation of this mixture.
        """
        evaluation = self.folder.parent / "evaluation.json"
        return push_mixture(self.folder, evaluation, repository, private, revision, token, license)


class WritingMixture(LoadedMixture):
    """A mixture of language models or adapters, read from a folder: it continues prompts.

    >>> mixture = moesaic.load("runs/demo")
    >>> mixture.generate("What is 3 + 4?").text

    With a trace, close the mixture in the end, or use it as a context manager:

    >>> with moesaic.load("runs/demo", trace="traffic.jsonl") as mixture:
    ...     mixture.generate("What is 3 + 4?")
    """

    def __init__(
        self, folder: Path, trace: Path | None = None, trace_texts: bool = False, budget: Budget | None = None
    ):
        self.folder, self.budget, self.stored = folder, budget, load_mixture(folder, budget)
        self.names = self.stored.model.names
        self.trace = Trace(trace, self.names, digest(self.stored.manifest)[:12], trace_texts) if trace else None
        device, listener = budget.device if budget else None, self.trace.record if self.trace else None
        self.engine = Engine(self.stored.model, self.stored.tokenizer, device, listener, self.stored.source)

    @property
    def traffic(self) -> Traffic:
        """Fetches of experts since the mixture was loaded; none without a budget."""
        return self.stored.source.traffic

    @overload
    def generate(self, prompt: str | Turns, **settings: Unpack[Settings]) -> Generation: ...
    @overload
    def generate(self, prompt: Several, **settings: Unpack[Settings]) -> list[Generation]: ...
    def generate(
        self,
        prompt: str | Turns | Several,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: tuple[str, ...] = (),
        expert: str | None = None,
    ) -> Generation | list[Generation]:
        """The continuation of a prompt, or of each of several; `expert`, which may be "base", replaces the router.

        A prompt is a text, or a conversation for the assistant to continue, [{"role": "user", "content": "..."}, ...],
        which the base's chat template formats and the router reads as a whole.
        """
        prompts, single = prompts_of(prompt)
        made = self.engine.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, expert=expert)
        first = [row[0] for row in made]
        return first[0] if single else first

    def stream(self, prompt: str | Turns, **settings: Unpack[Settings]) -> Generator[str, None, Generation]:
        """Yield the text of `generate` for one prompt, with the same settings, piece by piece; return the whole."""
        prompts, single = prompts_of(prompt)
        if not single:
            raise DataError("several prompts", field="prompt", expected="one prompt; generate answers several")
        (one,) = prompts
        return self.engine.stream(one, **settings)

    def classify(self, *_: object, **__: object) -> NoReturn:
        """Refuse: only mixtures of classifying experts have labels."""
        raise CompatibilityError("this mixture generates text and has no labels", hint="use generate")

    def reports(self, prompts: list[str | Conversation]) -> list[RoutingReport]:
        return self.engine.route(prompts)

    def check(self, copy: Path) -> object:
        if not self.budget:
            return load_mixture(copy)
        # under a budget, loading it again would take the memory twice
        return [read_manifest(manifest.parent) for manifest in copy.rglob(MANIFEST)]


class ClassifyingMixture(LoadedMixture):
    """A mixture of experts that classify, read from a folder: it labels texts.

    >>> mixture = moesaic.load("runs/glue")
    >>> mixture.classify("a text").label
    """

    traffic = Traffic()
    """No fetches: all experts are in memory."""

    def __init__(self, folder: Path):
        self.folder, self.stored = folder, load_classifier(folder)
        self.names = self.stored.model.names

    @overload
    def classify(self, text: Texts, *, expert: str | None = ...) -> Classification: ...
    @overload
    def classify(self, text: list[Texts], *, expert: str | None = ...) -> list[Classification]: ...
    def classify(
        self, text: Texts | list[Texts], *, expert: str | None = None
    ) -> Classification | list[Classification]:
        """The label of a text, or of each of several; a tuple of two texts is one row. `expert` replaces the router."""
        texts = text if isinstance(text, list) else [text]
        for one in texts:
            if not isinstance(one, str) and not (isinstance(one, tuple) and all(isinstance(part, str) for part in one)):
                expected, got = "a text, a tuple of two texts, or a list of these", f"{type(one).__name__} {one!r}"
                raise DataError("wrong type", field="text", expected=expected, got=got)
        found = classified(self.stored, [(one,) if isinstance(one, str) else one for one in texts], expert)
        return found if isinstance(text, list) else found[0]

    def generate(self, *_: object, **__: object) -> NoReturn:
        """Refuse: only mixtures of language models generate text."""
        raise CompatibilityError("this mixture answers with labels and generates no text", hint="use classify")

    stream = generate

    def reports(self, prompts: list[str | Conversation]) -> list[RoutingReport]:
        return routed(self.stored, [(one if isinstance(one, str) else plain(one),) for one in prompts])

    def check(self, copy: Path) -> object:
        return load_classifier(copy)


def prompts_of(prompt: Any) -> tuple[list[str | Conversation], bool]:
    """A caller's prompts, and whether the caller gave a single one.

    One prompt is a text, a message, a list of messages, or a row {"messages": ...} or {"prompt": ...}; several are any
    other iterable of these. Raises DataError for anything else, and names a malformed message.
    """
    prompt = spelled_out(prompt)
    if isinstance(prompt, str | Mapping):
        return [prompt_of(prompt)], True
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Iterable):
        raise DataError("wrong type", field="prompt", expected=PROMPT, got=f"{type(prompt).__name__} {prompt!r}")
    several = [spelled_out(one) for one in prompt]
    if several and all(isinstance(one, Mapping) and "role" in one for one in several):
        return [conversation_of(several)], True
    return [prompt_of(one) for one in several], False


def spelled_out(value: Any) -> Any:
    """A message as a mapping; any other value as it is."""
    return value._asdict() if isinstance(value, Message) else value


def prompt_of(prompt: Any) -> str | Conversation:
    """One prompt of a caller."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        if "messages" in prompt:
            return conversation_of(prompt["messages"])
        if "prompt" in prompt:
            return prompt_of(prompt["prompt"])
        return conversation_of([prompt])
    if isinstance(prompt, list | tuple):
        return conversation_of(prompt)
    raise DataError("wrong type", field="prompt", expected=PROMPT, got=f"{type(prompt).__name__} {prompt!r}")


def conversation_of(turns: Any) -> Conversation:
    """A caller's messages for the assistant to answer, checked."""
    if not isinstance(turns, list | tuple):
        raise DataError("wrong type", field="messages", expected="a list of {role, content}", got=repr(turns))
    messages = messages_of([spelled_out(turn) for turn in turns])
    if messages and messages[-1].role == "assistant":
        raise DataError("nothing to answer", field="messages", expected="a last message of another role than assistant")
    return messages


def load(
    place: str | os.PathLike[str],
    *,
    trace: str | os.PathLike[str] | None = None,
    trace_texts: bool = False,
    ram: str | int | None = None,
    vram: str | int | None = None,
) -> WritingMixture | ClassifyingMixture:
    """Load a mixture, of language models or classifiers, from its own folder, its run directory, or
    `org/name@revision` of the hub.

    `trace`: a file to append every decision behind a generated text to (see `generate.trace`), with the prompt as its
    SHA-256, or with `trace_texts` as it is. Calls of `route` are not recorded.

    `ram`: memory limit of weights and answers together, as "2GB", in addition to Python with all imports. Experts that
    do not fit stay on disk, are fetched for their prompts, and unloaded again: `traffic` counts the fetches. `vram`:
    the limit of a device, which then computes, while `ram` limits the host. Raises MemoryLimitError before loading
    anything if the experts of a single row do not fit.
    """
    if not isinstance(place, str | os.PathLike):
        got = f"{type(place).__name__} {place!r}"
        raise RecipeError("wrong type", field="place", expected="a folder, or org/name of the hub", got=got)
    with float32():
        return opened(place, trace, trace_texts, ram, vram)


@contextmanager
def float32() -> Iterator[None]:
    """Make new tensors float32 whatever the caller's default, which would change weights and so fingerprints."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


def opened(
    place: str | os.PathLike[str],
    trace: str | os.PathLike[str] | None,
    trace_texts: bool,
    ram: str | int | None,
    vram: str | int | None,
) -> WritingMixture | ClassifyingMixture:
    """Load a mixture: see `load`."""
    if trace_texts and trace is None:
        raise RecipeError("no trace to write texts to", field="trace_texts", hint="name the trace's file")
    found = locate(place).folder
    folder = next((one for one in (found / "mixture", found) if (one / MANIFEST).is_file()), None)
    if folder is None:
        hint = unjoined(found) or "give a run directory after `compose`, or a folder of save_pretrained"
        raise WeightsError("no mixture here", path=found, hint=hint)
    budgeted = ram is not None or vram is not None
    if classifies(folder):
        if budgeted:
            field = "ram" if vram is None else "vram"
            raise RecipeError("a mixture that classifies must fit into memory as a whole", field=field)
        if trace is not None:
            raise RecipeError("a mixture that classifies has no trace", field="trace")
        return ClassifyingMixture(folder)
    from moesaic.compose.budget import budget

    memory = budget(folder, vram, ram) if budgeted else None
    return WritingMixture(folder, None if trace is None else Path(trace), trace_texts, memory)
