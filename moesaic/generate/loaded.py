"""Loaded models for users, with their calls: generate, classify, route, save and push. The results of `moesaic.load`.

Knows nothing about how mixtures are made.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypedDict, TypeVar, Unpack, cast, overload

import torch

from moesaic.artefacts.base import load_base
from moesaic.artefacts.base_search import base_for
from moesaic.artefacts.inspect import unjoined
from moesaic.compose.alone import base_alone, expert_alone
from moesaic.compose.classifier import classifies, load_classifier
from moesaic.compose.mixture import copy_mixture, embeds, load_mixture
from moesaic.data.rows import messages_of
from moesaic.errors import CompatibilityError, DataError, MoesaicWarning, RecipeError, WeightsError, whole
from moesaic.files import MANIFEST, digest, disk, read_manifest, write_new
from moesaic.generate.classify import Classification, classified, routed
from moesaic.generate.completion import Completion, completions
from moesaic.generate.engine import Engine
from moesaic.generate.request import Generation, RoutingReport, Settings
from moesaic.generate.sample import Sampling
from moesaic.generate.sharing import push_mixture
from moesaic.generate.trace import Trace
from moesaic.hardware import AUTO, HOST, Compute
from moesaic.hub.locate import Located, Place, locate
from moesaic.interop.folders import Folder, What, what_is
from moesaic.kinds import KINDS
from moesaic.model.source import Traffic
from moesaic.residency.fetching import Budget
from moesaic.sections.places import name_at
from moesaic.tokenizer import Conversation, Message, Tokenizer
from moesaic.tokenizer.conversation import NEXT_TURN, plain

Turns = Sequence[Mapping[str, Any] | Message]
"""A conversation: messages with a role and a content."""
Asked = str | Mapping[str, Any] | Message | Turns
"""One prompt: a text, a message, a conversation, or a row {"messages": ...} or {"prompt": ...}."""
Several = Iterable[Asked]
Texts = str | tuple[str, ...]
"""A text, or a row of two."""

PLACE = "a folder, or org/name of the hub"
PROMPT = "a text, a list of {role, content}, or an iterable of these"

M = TypeVar("M", bound="Loaded")


class Words(TypedDict, total=False):
    """The keywords of `generate`: see `WritingModel.generate`."""

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    sampling: Sampling | None
    stop: str | Sequence[str]
    expert: str | None
    raw: bool


class Loaded(ABC):
    """A model or mixture that was loaded from `folder`; also a context manager, which closes it."""

    folder: Path
    names: tuple[str, ...]
    """The experts, in the router's order."""
    level: str = "sequence"
    """The router decides about each sequence, or before each token."""
    trace: Trace | None = None
    routes: bool = True
    """A router decides; False for a model alone, which answers everything."""

    def __repr__(self) -> str:
        experts = f" of {', '.join(self.names)}" if self.names else ""
        return f"<{type(self).__name__}{experts} from {self.folder}>"

    @overload
    def route(self, text: Asked, *, raw: bool = ...) -> RoutingReport: ...  # type: ignore[overload-overlap]
    @overload
    def route(self, text: Several, *, raw: bool = ...) -> list[RoutingReport]: ...
    def route(self, text: Asked | Several, *, raw: bool = False) -> RoutingReport | list[RoutingReport]:
        """The router's decision about a text or a conversation, or about each of several; `raw`: see `generate`."""
        prompts, single = prompts_of(text)
        reports = self.reports(prompts, raw)
        return reports[0] if single else reports

    @abstractmethod
    def reports(self, prompts: list[str | Conversation], raw: bool) -> list[RoutingReport]:
        """The router's decision about each prompt."""

    @abstractmethod
    def check(self, copy: Path) -> object:
        """Raise for a damaged copy of the folder."""

    def close(self) -> None:
        """End the trace, if any, and sync its rows to disk."""
        if self.trace:
            self.trace.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, overwrite: bool = False, embed: bool | None = None
    ) -> Path:
        """Copy all files into a new folder, and check the copy; `overwrite`: replace a folder that exists.

        `embed`: copy the base that a mixture refers to as well (default: only a base in a folder of this machine, as
        any machine finds one of the hub).
        """

        def write(draft: Path) -> None:
            copy_mixture(self.folder, draft, embeds(self.folder, embed))
            self.check(draft)

        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return write_new(Path(folder), write, size, "the copy", overwrite=overwrite)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        license: str | None = None,
        embed: bool | None = None,
    ) -> str:
        """Push a mixture and a model card to a repository of the hub, in one commit, for `load` to read.

        The arguments are those of a model from `load_model`; `embed`: see `save_pretrained`. The card shows the verdict
        of the run's evaluation, if the run directory has an evaluation of this mixture.
        """
        evaluation = self.folder.parent / "evaluation.json"
        with disk.private() as draft:
            folder = self.folder
            if embeds(folder, embed):
                copy_mixture(folder, draft, embed=True)
                folder = draft
            return push_mixture(folder, evaluation, repository, private, revision, token, license)


class WritingModel(Loaded):
    """A model that continues prompts: a base, or one expert over its base.

    >>> model = moesaic.load("shipped:tiny")
    >>> model.generate("Once upon a time").text
    """

    routes = False

    def __init__(self, folder: Path, engine: Engine):
        self.folder, self.engine, self.names = folder, engine, engine.mixture.names

    @property
    def writer(self) -> "WritingModel":
        """The model itself: it predicts texts, which a mixture that classifies does not."""
        return self

    @property
    def traffic(self) -> Traffic:
        """Fetches of experts since the model was loaded; none without a budget."""
        return self.engine.source.traffic

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its continuation together."""
        return self.engine.mixture.context

    @property
    def turn_stops(self) -> tuple[str, ...]:
        """Strings that end an answer in a conversation; none where the base has a chat template, which ends answers."""
        return () if self._tokenizer.template else (NEXT_TURN,)

    def length(self, prompt: str | Conversation) -> int:
        """The number of tokens of a prompt as the model reads it."""
        return len(self._tokenizer.begin(prompt))

    @property
    def _tokenizer(self) -> Tokenizer:
        return cast(Tokenizer, self.engine.tokenizer)

    @cached_property
    def identity(self) -> str:
        """12 hex digits of the model's manifest, or else of the names and sizes of its files."""
        if (self.folder / MANIFEST).is_file():
            return digest(read_manifest(self.folder, verify=False))[:12]
        return digest({path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()})[:12]

    @overload
    def generate(self, prompt: Asked, **settings: Unpack[Words]) -> Generation: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Several, **settings: Unpack[Words]) -> list[Generation]: ...
    def generate(
        self,
        prompt: Asked | Several,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        expert: str | None = None,
        raw: bool = False,
    ) -> Generation | list[Generation]:
        """The continuation of a prompt, or of each of several; `expert`, which may be "base", replaces the router.

        A prompt is a text, or a conversation for the assistant to continue, [{"role": "user", "content": "..."}, ...].
        Where the base has a chat template, it formats conversations, and a text as the message of a user; with `raw` a
        text is continued as it is. The router reads the same.
        `temperature`: 0, the default, takes the most probable token; see `Sampling`, whose settings may also come as
        one value, `sampling`.
        """
        prompts, single = prompts_of(prompt)
        words: Words = {"max_new_tokens": max_new_tokens, "stop": stop, "expert": expert, "raw": raw}
        words |= {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed, "sampling": sampling}
        self._warn(prompts)
        first = [row[0] for row in self.engine.generate(prompts, **settings_of(words))]
        return first[0] if single else first

    def stream(self, prompt: Asked, **settings: Unpack[Words]) -> Generator[str, None, Generation]:
        """Yield the text of `generate` for one prompt, with the same settings, piece by piece; return the whole."""
        prompts, single = prompts_of(prompt)
        if not single:
            raise DataError("several prompts", field="prompt", expected="one prompt; generate answers several")
        (one,) = prompts
        self._warn(prompts)
        return self.engine.stream(one, **settings_of(settings))

    def text_completion(
        self,
        prompts: Sequence[str],
        *,
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
        seed: int | None = None,
        expert: str | None = None,
    ) -> list[Completion]:
        """Continue texts as they are, with the arguments and the defaults of Llama's generator of the same name.

        `echo`: put the prompt in front of its continuation. `logprobs`: report the log-probability of each token.
        `max_gen_len`: the limit of new tokens (default: that of `generate`). `seed`, `expert`: see `generate`.
        """
        given = [self._tokenizer.begin(prompt, raw=True) for prompt in prompts]
        settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_gen_len": max_gen_len}
        settings |= {"logprobs": logprobs, "echo": echo, "seed": seed, "expert": expert}
        return self.token_completion(given, **settings)

    def token_completion(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
        seed: int | None = None,
        expert: str | None = None,
    ) -> list[Completion]:
        """Continue prompts that are ids of tokens, as `generate` of Llama's generator does; see `text_completion`."""
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        settings: Settings = {"max_new_tokens": max_gen_len, "sampling": sampling, "expert": expert}
        steady = self.level == "sequence" or expert is not None
        return completions(self.engine, prompts, self._tokenizer.vocab_size, settings, logprobs, echo, steady)

    def _warn(self, prompts: list[str | Conversation]) -> None:
        """Warn of a text that spells a special token, as one does that was written with a chat template already."""
        found = (self._tokenizer.spelled(one) for one in prompts if isinstance(one, str))
        if token := next(filter(None, found), None):
            what = f"a prompt spells the special token {token}, which is read as text"
            warnings.warn(f"{what}: give messages, which the chat template writes", MoesaicWarning, stacklevel=3)

    def classify(self, *_: object, **__: object) -> NoReturn:
        """Refuse: only mixtures of classifying experts have labels."""
        raise CompatibilityError("this model generates text and has no labels", hint="use generate")

    def reports(self, prompts: list[str | Conversation], raw: bool) -> list[RoutingReport]:
        return self.engine.route(prompts, raw)

    def check(self, copy: Path) -> object:
        return [read_manifest(manifest.parent) for manifest in copy.rglob(MANIFEST)]


class WritingMixture(WritingModel):
    """A mixture of language models or adapters, read from a folder: it continues prompts.

    >>> mixture = moesaic.load("runs/demo")
    >>> mixture.generate("What is 3 + 4?").text

    With a trace, close the mixture in the end, or use it as a context manager:

    >>> with moesaic.load("runs/demo", trace="traffic.jsonl") as mixture:
    ...     mixture.generate("What is 3 + 4?")
    """

    routes = True

    def __init__(
        self,
        folder: Path,
        trace: Path | None = None,
        trace_texts: bool = False,
        budget: Budget | None = None,
        compute: Compute = HOST,
    ):
        self.budget, self.stored = budget, load_mixture(folder, budget, compute)
        self.level = str(self.stored.manifest.get("level", self.level))
        self.identity = digest(self.stored.manifest)[:12]
        self.trace = Trace(trace, self.stored.model.names, self.identity, trace_texts) if trace else None
        listener = self.trace.record if self.trace else None
        engine = Engine(self.stored.model, self.stored.tokenizer, compute.device, listener, self.stored.source)
        super().__init__(folder, engine)

    def check(self, copy: Path) -> object:
        # under a budget, loading it again would take the memory twice
        return super().check(copy) if self.budget else load_mixture(copy)


class ClassifyingMixture(Loaded):
    """A mixture of experts that classify, read from a folder: it labels texts.

    >>> mixture = moesaic.load("runs/glue")
    >>> mixture.classify("a text").label
    """

    traffic = Traffic()
    """No fetches: all experts are in memory."""

    def __init__(self, folder: Path, compute: Compute = HOST):
        self.folder, self.stored = folder, load_classifier(folder, compute)
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

    @property
    def writer(self) -> NoReturn:
        """Refuse: only language models predict texts."""
        raise CompatibilityError(
            "this mixture answers with labels and predicts no text", hint="use classify, or evaluate its run"
        )

    def reports(self, prompts: list[str | Conversation], raw: bool) -> list[RoutingReport]:
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


def settings_of(words: Words) -> Settings:
    """The settings of requests from the keywords of `generate`; RecipeError for `sampling` beside its own settings."""
    given = {name: words.get(name) for name in ("temperature", "top_p", "top_k", "seed")}
    single: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    sampling = words.get("sampling")
    if single and sampling is not None:
        raise RecipeError("given beside sampling", field=", ".join(single), hint="set them in sampling, or alone")
    return {
        "max_new_tokens": words.get("max_new_tokens"),
        "sampling": sampling or Sampling(**single),
        "stop": cast(tuple[str, ...], words.get("stop", ())),  # a request reads texts and lists, and refuses others
        "expert": words.get("expert"),
        "raw": words.get("raw", False),
    }


def load(
    place: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    trace_texts: bool = False,
    ram: str | int | None = None,
    vram: str | int | None = None,
    device: str = AUTO,
    dtype: str = "float32",
    bits: int | None = None,
) -> WritingModel | ClassifyingMixture:
    """Load whatever answers prompts: a mixture, of language models or classifiers, from its own folder, its run
    directory, or `org/name@revision` of the hub; a base or a merge, also `shipped:tiny`; or one expert over its base.

    `base`: the place of an expert's base, if it is neither in the folders around the expert nor named by it.

    `trace`: a file to append every decision behind a generated text to (see `generate.trace`), with the prompt as its
    SHA-256, or with `trace_texts` as it is. Calls of `route` are not recorded.

    `ram`: memory limit of weights and answers together, as "2GB", in addition to Python with all imports. Experts that
    do not fit stay on disk, are fetched for their prompts, and unloaded again: `traffic` counts the fetches. `vram`:
    the limit of a device, which then computes, while `ram` limits the host. Raises MemoryLimitError before loading
    anything if the experts of a single row do not fit.

    `device`: cpu, cuda, cuda:1, mps, xpu, dml, or another name that torch knows; `auto`: an accelerator, else the CPU.
    `dtype`: the type of base and experts, float32, bfloat16 or float16; `auto`: bfloat16 where the device has units for
    it, else float32. Adapters, router and heads are float32.
    `bits`: 8 or 4, for a base that has so many bits of each value in its layers' matrices; takes torchao.
    """
    for field, value, expected in (("place", place, PLACE), ("base", base, PLACE), ("trace", trace, "a file")):
        if not isinstance(value, str | os.PathLike) and (value is not None or field == "place"):
            got = f"{type(value).__name__} {value!r}"
            raise RecipeError("wrong type", field=field, expected=expected, got=got)
    for field, size in (("ram", ram), ("vram", vram)):
        if size is not None and not isinstance(size, str):
            whole(size, field, "a size, such as '2GB', or a whole number of bytes")
    from moesaic.compose.budget import computing

    compute = computing(device, dtype, vram, ram, bits)
    with float32():
        return opened(place, base, trace, trace_texts, ram, vram, compute)


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
    base: str | os.PathLike[str] | None,
    trace: str | os.PathLike[str] | None,
    trace_texts: bool,
    ram: str | int | None,
    vram: str | int | None,
    compute: Compute,
) -> WritingModel | ClassifyingMixture:
    """Load whatever answers prompts: see `load`."""
    if trace_texts and trace is None:
        raise RecipeError("no trace to write texts to", field="trace_texts", hint="name the trace's file")
    at = locate(place)
    mixture = at.folder / "mixture" if what_is(at.folder).what == "run" else at.folder
    given = {"trace": trace, "ram": ram, "vram": vram}
    if what_is(mixture).what != "mixture":
        refuse(given, "only a mixture has decisions to trace, and experts to fetch")
        return model_at(at, base, compute)
    refuse({"base": base}, "a mixture has a base: `moesaic adopt --into MIXTURE --base PATH` names its new place")
    if classifies(mixture):
        refuse(given, "a mixture that classifies has no trace, and must fit into memory as a whole")
        return ClassifyingMixture(mixture, compute)
    if ram is not None or vram is not None:
        refuse({"bits": compute.bits}, "under ram or vram a base has all its bits")
    from moesaic.compose.budget import budget

    memory = budget(mixture, vram, ram, compute) if ram is not None or vram is not None else None
    return WritingMixture(mixture, None if trace is None else Path(trace), trace_texts, memory, compute)


def model_at(at: Located, base: Place | None, compute: Compute) -> WritingModel:
    """Load a base, or one expert over its base; WeightsError for a folder of anything else."""
    found = what_is(at.folder)
    if found.what not in WRITERS:
        hint = unjoined(at.folder) or "give a run directory after `compose`, a mixture, a model or an expert"
        raise WeightsError(NO_WRITER.get(found.what, "nothing here answers prompts"), path=at.folder, hint=hint)
    return WRITERS[found.what](found, at, base, compute)


def base_model(found: Folder, at: Located, base: Place | None, compute: Compute) -> WritingModel:
    refuse({"base": base}, "only an expert needs a base beside it")
    own = load_base(at.folder, at.origin, compute)
    return WritingModel(found.at, Engine(base_alone(own.decoder), own.tokenizer, compute.device))


def expert_model(found: Folder, at: Located, base: Place | None, compute: Compute) -> WritingModel:
    base_at = base_for(found.at, base)
    own, kind = load_base(base_at.folder, base_at.origin, compute), KINDS[found.form]
    name = str(found.manifest.get("name") or name_at(at.place or found.at))
    model = expert_alone(kind, own, name, kind.read(found.at, own))
    return WritingModel(found.at, Engine(model, own.tokenizer, compute.device))


WRITERS: dict[What, Callable[[Folder, Located, Place | None, Compute], WritingModel]] = {
    "model": base_model,
    "merge": base_model,
    "adapter": expert_model,
    "expert": expert_model,
}
"""How a folder becomes a model that answers prompts, by what the folder is."""

NO_WRITER: dict[What, str] = {
    "encoder": "an encoder reads texts and writes none",
    "router": "a router decides and writes no text",
    "model and adapter": "a model and an adapter in one folder: which of the two is meant?",
    "checkpoint": "the state of a training, which is not finished",
    "run": "no mixture here",
}


def refuse(given: Mapping[str, Any], hint: str) -> None:
    """Refuse arguments that mean nothing for what is loaded."""
    if useless := [name for name, value in given.items() if value is not None]:
        raise RecipeError("has no meaning here", field=", ".join(useless), hint=hint)
