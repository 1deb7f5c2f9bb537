"""A recipe and its run directory: where parts lie, which are finished, and the texts they are made from.

Knows nothing about training. Opened once a process; what it reads from disk it keeps.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from moesaic.artefacts.backbone import Backbone, load_backbone
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.sentence_encoder import StoredEncoder, load_sentences
from moesaic.data.answers import LabelledTokens, encode_labelled
from moesaic.data.batches import Tokens, encode_all
from moesaic.data.rejects import Rejects
from moesaic.data.rows import Example
from moesaic.data.splits import Domain, load_domain, load_source, take
from moesaic.errors import RecipeError, WeightsError
from moesaic.files import MANIFEST, check_space, digest, disk, publish, read_manifest
from moesaic.hub.locate import Located, Origins, locate
from moesaic.model.classifier import Pool, usual_pool
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.recipe import ExistingBase, NewBase, Recipe, dump, parse
from moesaic.runs.progress import Progress
from moesaic.sections.routers import EncoderFeature
from moesaic.sections.sources import Source

P = ParamSpec("P")
T = TypeVar("T")

# Enough rows to choose a learning rate by, few enough not to cost more than the training.
VALIDATION_ROWS = 100

Address = tuple[str, str, bool, tuple[tuple[str, Located], ...]]
"""A recipe's text, a run directory, whether damage is refused, and where the models lie that were looked for."""


class Workshop:
    """Everything that stages share about one run. `strict`: what is damaged is refused rather than made anew."""

    def __init__(self, recipe: Recipe, root: Path, strict: bool = False, found: Iterable[tuple[str, Located]] = ()):
        self.recipe, self.root, self.strict, self.found = recipe, root, strict, dict(found)
        self.encoders: dict[str, StoredEncoder] = {}
        most = recipe.max_bad if recipe.bad_rows == "skip" else None
        self.rejects = Rejects(most, self.rejects_at, self.refuse)

    @property
    def address(self) -> Address:
        """What another process needs to open the same workshop with `at_address`."""
        return dump(self.recipe), str(self.root), self.strict, tuple(self.found.items())

    # where parts lie

    @property
    def base_at(self) -> Path:
        if isinstance(self.recipe.base, ExistingBase):
            return self.located(self.recipe.base.path).folder
        return self.root / "base"

    def located(self, place: str) -> Located:
        """Where a model lies that the recipe names; the hub is asked once, by no process of the pool again."""
        if place not in self.found:
            try:
                self.found[place] = locate(place)
            except WeightsError as error:
                error.field = error.field or next((key for key, at in self.recipe.places.items() if at == place), None)
                raise
        return self.found[place]

    @property
    def origins(self) -> Origins:
        """Of the base and of every expert that is not from here, the place and the commit, by name; no folders."""
        base = [("base", self.recipe.base.path)] if isinstance(self.recipe.base, ExistingBase) else []
        experts = [(name, expert.path) for name, expert in self.recipe.experts.items() if expert.path]
        found = {name: self.located(place).origin for name, place in (*base, *experts)}
        return {name: origin for name, origin in found.items() if origin}

    def part_at(self, contender: str) -> Path:
        """Where an expert lies, or a control that is trained as one."""
        room = "experts" if contender in self.recipe.experts else "controls"
        return self.root / room / contender / "best"

    @property
    def router_at(self) -> Path:
        return self.root / "router"

    def rival_at(self, label: str) -> Path:
        """Where a router that is only compared lies."""
        return self.root / "controls" / "routers" / label

    @property
    def mixture_at(self) -> Path:
        return self.root / "mixture"

    @property
    def rejects_at(self) -> Path:
        """The list of rows that were left out."""
        return self.root / "rejects.jsonl"

    # what is finished

    def finished(self, at: Path, key: str, progress: Progress) -> bool:
        """Whether a sound version made from the same inputs stands there; a damaged one is named and not counted."""
        try:
            return (at / MANIFEST).is_file() and read_manifest(at).get("stage_key") == key
        except WeightsError as error:
            if self.strict:
                raise
            progress.warn(f"damaged, to be made anew: {error}")
            return False

    def identity(self, at: Path) -> Any:
        """What a finished part is: the key of all it was made from; where it has none, the hashes of its files."""
        manifest = read_manifest(at)
        return manifest.get("stage_key") or manifest["files"]

    def publish(self, at: Path, write: Callable[[Path], None], needed_bytes: int) -> None:
        """Put a part in its place, if there is room for it."""
        disk.make_all(at.parent)
        check_space(at, needed_bytes, at.relative_to(self.root).as_posix())
        publish(at, write)

    def key(self, stage: str, **inputs: Any) -> str:
        """The hash of all that a stage's result depends on."""
        return digest({"stage": stage, "seed": self.recipe.seed, **inputs})

    # what parts are made from

    def refuse(self, row: list[Example]) -> None:
        """Raise DataError for a row that the chat template of the base does not take; only a base that is there already
        has one.
        """
        if row[0].messages and isinstance(self.recipe.base, ExistingBase) and self.base.tokenizer.template:
            self.encoded(row, self.base.decoder.config.context)

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """The texts of every expert that has data; nobody learns from what another domain is judged on."""
        read = {
            name: load_domain(name, expert.data, self.recipe.resolve, self.rejects)
            for name, expert in self.recipe.experts.items()
            if expert.data
        }
        judged = {example.group for domain in read.values() for example in domain.test}
        return {name: domain.without(judged) for name, domain in read.items()}

    @cached_property
    def unseen(self) -> list[Example]:
        return self.texts(self.recipe.evaluate.unseen)

    def texts(self, sources: Iterable[Source]) -> list[Example]:
        """Text that belongs to no domain."""
        return load_source(sources, self.recipe.resolve, self.rejects)

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Of every file that the recipe names, the rows read, used, and skipped by reason; all of them are read."""
        base, experts = self.recipe.base, self.recipe.experts.values()
        apart = [expert.examples for expert in experts if expert.examples and not expert.data]
        if isinstance(base, NewBase) and base.pretrain.data != "experts":
            apart.append(base.pretrain.data)
        _ = self.domains, self.unseen
        for sources in apart:
            self.texts(sources)
        return self.rejects.files()

    @cached_property
    def base(self) -> Base:
        """The base, for reading only: whoever changes a decoder loads one of its own with `fresh_base`."""
        if not self.base_at.is_dir() and not isinstance(self.recipe.base, ExistingBase):
            raise RecipeError("there is no base yet", path=self.base_at, hint="make it first: moesaic pretrain RECIPE")
        base = self.fresh_base()
        self.require_room(base.decoder)
        return base

    @cached_property
    def backbone(self) -> Backbone:
        """The base of a run whose rows have labels, for reading only."""
        backbone = self.fresh_backbone()
        self.require_room(backbone.body)
        return backbone

    def require_room(self, body: Decoder | Encoder) -> None:
        """Refuse a recipe that asks for more blocks or longer rows than the base has."""
        context, blocks = body.config.context, body.config.num_layers
        for place, spec in enumerate([self.recipe.router, *self.recipe.router.compare]):
            if (spec.depth or 0) > blocks:
                field = f"router.compare[{place - 1}].feature" if place else "router.feature"
                what = "the router reads deeper than the base is"
                raise RecipeError(what, field=field, expected=f"at most hidden@{blocks}", got=spec.feature)
        for name in ("train", *self.trained_experts()):
            settings = self.recipe.train if name == "train" else self.recipe.train_of(name)
            if settings.length > context:
                field = "train.length" if name == "train" else f"experts.{name}.train.length"
                what = "rows longer than the context of the base"
                raise RecipeError(what, field=field, expected=f"<= {context}", got=settings.length)

    @property
    def body(self) -> Decoder | Encoder:
        """The base as a model, whether its rows have labels or not, for reading only."""
        return self.backbone.body if self.recipe.labelled else self.base.decoder

    def fresh_body(self) -> Decoder | Encoder:
        """The same, for who changes it."""
        return self.fresh_backbone().body if self.recipe.labelled else self.fresh_base().decoder

    @property
    def pool(self) -> Pool:
        """Which state of a row its label is read from."""
        own = self.recipe.base.pool if isinstance(self.recipe.base, ExistingBase) else None
        return own or usual_pool(self.body)

    @property
    def counts(self) -> dict[str, int]:
        """How many labels each domain has; all of them stand in this order."""
        return {name: len(domain.labels) for name, domain in self.domains.items()}

    def encoder(self, feature: EncoderFeature) -> StoredEncoder:
        """The encoder that a router reads, for reading only."""
        if feature.model not in self.encoders:
            self.encoders[feature.model] = load_sentences(self.located(feature.model).folder)
        return self.encoders[feature.model]

    def fresh_backbone(self) -> Backbone:
        base = self.recipe.base
        return load_backbone(self.base_at, self.located(base.path).origin if isinstance(base, ExistingBase) else None)

    def fresh_base(self) -> Base:
        base = self.recipe.base
        return load_base(self.base_at, self.located(base.path).origin if isinstance(base, ExistingBase) else None)

    @property
    def foundation(self) -> Base | Backbone:
        """What the run is built on, as its kind of rows reads it."""
        return self.backbone if self.recipe.labelled else self.base

    @property
    def base_fingerprint(self) -> str:
        return self.foundation.fingerprint

    def encoded(self, examples: list[Example], length: int) -> list[Tokens]:
        return encode_all(examples, self.base.tokenizer, length, self.recipe.router.prompt_tokens)[0]

    def labelled(self, examples: list[Example], length: int, domain: str) -> list[LabelledTokens]:
        """Rows of one domain, their labels by their place among those of all."""
        counts = [*self.counts.values()]
        start = sum(counts[: [*self.counts].index(domain)])
        return encode_labelled(examples, self.backbone.writer, length, self.domains[domain].labels, start)

    def labelled_test_rows(self) -> dict[str, list[LabelledTokens]]:
        """The rows with labels that everything is judged on, by domain."""
        limit, length = self.recipe.evaluate.limit, self.recipe.train.length
        return {name: self.labelled(take(d.test, limit), length, name) for name, d in self.domains.items()}

    def test_rows(self) -> dict[str, list[Tokens]]:
        """The rows that everything is judged on, by domain; `unseen` last where the recipe names such text."""
        limit, length = self.recipe.evaluate.limit, self.recipe.train.length
        rows = {name: self.encoded(take(d.test, limit), length) for name, d in self.domains.items()}
        return rows | ({"unseen": self.encoded(take(self.unseen, limit), length)} if self.unseen else {})

    def trained_experts(self) -> list[str]:
        """The experts that this run trains; the others were trained elsewhere."""
        return [name for name, expert in self.recipe.experts.items() if expert.data and not expert.path]


_kept: list[Callable[[], None]] = []


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """What a function made last stays between pieces of work, until the run ends in which it was made."""
    cached = lru_cache(maxsize=1)(make)
    _kept.append(cached.cache_clear)
    return cached  # type: ignore[return-value]  # what a piece of work is given can be hashed


@contextmanager
def keeping() -> Iterator[None]:
    """A run: what pieces of its work keep in this process goes with it, as files may be others in the next one."""
    try:
        yield
    finally:
        for clear in _kept:
            clear()


@kept
def at_address(recipe: str, root: str, strict: bool, found: tuple[tuple[str, Located], ...]) -> Workshop:
    """The workshop of another process's run, kept between pieces of work."""
    import yaml

    return Workshop(parse(yaml.safe_load(recipe)), Path(root), strict, found)
