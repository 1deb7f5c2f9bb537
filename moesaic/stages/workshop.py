"""A recipe and its run directory: where parts lie, which are finished, and the texts they are made from.

Knows nothing about training. Opened once a process; what it reads from disk it keeps.
"""

from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from moesaic.data.batches import Tokens, encode_all
from moesaic.data.rejects import Rejects
from moesaic.data.rows import Example
from moesaic.data.splits import Domain, load_domain, load_source, take
from moesaic.errors import RecipeError, WeightsError
from moesaic.files import MANIFEST, check_space, digest, disk, publish, read_manifest
from moesaic.recipe import EncoderFeature, ExistingBase, NewBase, Recipe, Source, dump, parse
from moesaic.stages.progress import Progress
from moesaic.weights.base import Base, load_base
from moesaic.weights.sentences import StoredEncoder, load_sentences

# Enough rows to choose a learning rate by, few enough not to cost more than the training.
VALIDATION_ROWS = 100

Address = tuple[str, str, bool]
"""A recipe's text, a run directory, and whether damage is refused."""


class Workshop:
    """Everything that stages share about one run. `strict`: what is damaged is refused rather than made anew."""

    def __init__(self, recipe: Recipe, root: Path, strict: bool = False):
        self.recipe, self.root, self.strict = recipe, root, strict
        self.encoders: dict[str, StoredEncoder] = {}
        self.rejects = Rejects(recipe.max_bad if recipe.bad_rows == "skip" else None, self.rejects_at)

    @property
    def address(self) -> Address:
        """What another process needs to open the same workshop with `at_address`."""
        return dump(self.recipe), str(self.root), self.strict

    # where parts lie

    @property
    def base_at(self) -> Path:
        if isinstance(self.recipe.base, ExistingBase):
            return Path(self.recipe.base.path)
        return self.root / "base"

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
        base = load_base(self.base_at)
        context, blocks = base.decoder.config.context, base.decoder.config.num_layers
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
        return base

    def encoder(self, feature: EncoderFeature) -> StoredEncoder:
        """The encoder that a router reads, for reading only."""
        if feature.model not in self.encoders:
            self.encoders[feature.model] = load_sentences(Path(feature.model))
        return self.encoders[feature.model]

    def fresh_base(self) -> Base:
        return load_base(self.base_at)

    @property
    def base_fingerprint(self) -> str:
        return self.base.fingerprint

    def encoded(self, examples: list[Example], length: int) -> list[Tokens]:
        return encode_all(examples, self.base.tokenizer, length, self.recipe.router.prompt_tokens)[0]

    def test_rows(self) -> dict[str, list[Tokens]]:
        """The rows that everything is judged on, by domain; `unseen` last where the recipe names such text."""
        limit, length = self.recipe.evaluate.limit, self.recipe.train.length
        rows = {name: self.encoded(take(d.test, limit), length) for name, d in self.domains.items()}
        return rows | ({"unseen": self.encoded(take(self.unseen, limit), length)} if self.unseen else {})

    def trained_experts(self) -> list[str]:
        """The experts that this run trains; the others were trained elsewhere."""
        return [name for name, expert in self.recipe.experts.items() if expert.data and not expert.path]


@lru_cache(maxsize=1)
def at_address(recipe: str, root: str, strict: bool) -> Workshop:
    """The workshop of another process's run, kept between pieces of work."""
    import yaml

    return Workshop(parse(yaml.safe_load(recipe)), Path(root), strict)
