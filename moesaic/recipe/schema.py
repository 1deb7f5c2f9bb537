"""The recipe: its keys, their defaults, and checks of keys beside each other.

Knows nothing about YAML, contents of files or tensors; sections never change after their check.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from moesaic.config import SIZES
from moesaic.errors import RecipeError, nearest
from moesaic.kinds import KINDS, AnyKind, Kind, at_site
from moesaic.recipe.by_kind import ByKind
from moesaic.recipe.mixing import Mixture, require_legal, require_routable, site_of
from moesaic.sections.expert import Expert
from moesaic.sections.layers import layer_bounds
from moesaic.sections.names import Control, validate_expert, validate_name
from moesaic.sections.routers import Router, RouterSpec
from moesaic.sections.section import CASE, Amount, Count, Distinct, Section, Text, Whole, either, refusal
from moesaic.sections.sources import Unseen, case_by_key
from moesaic.sections.texts import Texts
from moesaic.sections.training import Continuous, Pretrain, Train, TrainOverride

Metric = Literal["perplexity", "accuracy"]


def _run_name(name: str) -> str:
    try:
        return validate_name(name, "a run")
    except RecipeError as error:
        raise refusal(error) from None


class ExistingBase(Section):
    """An existing base."""

    path: Text
    """Folder with config.json, safetensors and a tokenizer, `org/name@revision` of the hub, or `shipped:tiny`."""
    bits: Literal[8, 4] | None = Field(default=None, exclude_if=lambda given: given is None)  # keys stay
    """Bits of the values of the layers' matrices while they are frozen, which takes torchao (default: all)."""
    pool: Literal["first", "mean", "last"] | None = None
    """State that a label is read from: of the first token, through the pooler of a BERT with one; of the last token; or
    the mean over all tokens (default: first for encoders, last for decoders)."""

    @property
    def place(self) -> str:
        """Place of the base: a folder, an id of the hub or a shipped model."""
        return self.path

    @property
    def pretrain(self) -> None:
        return None

    @property
    def new(self) -> "NewBase | None":
        return None

    def placed(self, put: Callable[[str], str]) -> "ExistingBase":
        """Rewrite the place by `put`."""
        return self.model_copy(update={"path": put(self.path)})


class NewBase(Section):
    """A new base, pretrained from random weights."""

    size: str
    """Name of the model's shape."""
    vocab_size: Annotated[int, Field(ge=257, le=2**20)] = 512
    """Entries of the tokenizer: 256 bytes, an end token, and merges."""
    pretrain: Pretrain
    """Settings of the pretraining."""

    @property
    def place(self) -> None:
        return None

    @property
    def pool(self) -> None:
        return None

    @property
    def bits(self) -> None:
        return None

    @property
    def new(self) -> "NewBase":
        return self

    def placed(self, put: Callable[[str], str]) -> "NewBase":
        return self

    @field_validator("size")
    @classmethod
    def _known(cls, size: str) -> str:
        if size not in SIZES:
            expected, hint = f"one of {', '.join(SIZES)}", nearest(size, list(SIZES))
            raise refusal(RecipeError("unknown size", expected=expected, got=repr(size), hint=hint))
        return size


Base = Annotated[
    Annotated[NewBase, Tag(CASE + "size")] | Annotated[ExistingBase, Tag(CASE + "path")], case_by_key("size", "path")
]


def _all_or_some(value: Any) -> str:
    return CASE + ("some" if isinstance(value, list) else "all")


class Evaluate(Section):
    """Metrics and controls."""

    metrics: Annotated[list[Metric], Distinct] = Field(default=list(get_args(Metric)), min_length=1)
    """Metrics to report beside nats per token: perplexity of contenders, accuracy of routers."""
    controls: Annotated[
        Annotated[Literal["all"], Tag(CASE + "all")] | Annotated[list[Control], Distinct, Tag(CASE + "some")],
        Discriminator(_all_or_some),
    ] = "all"
    """Controls to compare the mixture with."""
    unseen: Unseen = Field(default=[])
    """Text from domains without an expert: files, or `{demo: NAME}` for a built-in domain."""
    limit: Count = 200
    """Maximum number of rows of a domain."""
    batch: Count = 16
    """Rows in a batch."""
    joint: TrainOverride = TrainOverride()
    """Training settings of the control `joint` only."""
    joint_wide: TrainOverride = TrainOverride()
    """Training settings of the control `joint_wide` only."""
    samples: Whole = 2
    """Number of generated texts of each domain in the report."""
    generate: Texts | None = None
    """Texts to generate after test prompts and to score (default: none)."""
    matched: Count | None = None
    """Number of tokens from the middle of test prompts for a second test of routers, where length, start and end of a
    prompt give no hint; shorter prompts are left out (default: no second test)."""


def require_divided(spec: RouterSpec, experts: Mapping[str, Expert], at: tuple[str | int, ...]) -> None:
    """Refuse groups of a tree that do not hold every expert exactly once; `at`: place of the router."""
    seen: dict[str, str] = {}
    for group, names in (spec.groups or {}).items():
        for index, name in enumerate(names):
            error: RecipeError | None = None
            if name not in experts:
                expected, hint = f"one of {', '.join(experts)}", nearest(name, [*experts])
                error = RecipeError("no such expert", expected=expected, got=repr(name), hint=hint)
            elif name in seen:
                error = RecipeError("the expert is in a group already", expected="each expert once", got=repr(name))
                left = [other for other in experts if not any(other in some for some in (spec.groups or {}).values())]
                error.hint = nearest(name, left) or f"it is in group '{seen[name]}'"
            if error:
                raise refusal(error, *at, "groups", group, index)
            seen[name] = group
    missing = [name for name in experts if name not in seen] if spec.groups else []
    if missing:
        hint = "add to a group: " + ", ".join(missing)
        raise refusal(RecipeError("not every expert is in a group", got=", ".join(seen), hint=hint), *at, "groups")


def require_words(spec: RouterSpec, experts: Mapping[str, Expert], at: tuple[str | int, ...]) -> None:
    """Refuse `match: first` with several experts without keywords, which learns none."""
    without = [name for name, expert in experts.items() if not expert.keywords]
    if spec.match == "first" and len(without) > 1:
        what, expected = "the rule learns no keywords", "keywords of all experts but one, which takes the other prompts"
        hint = f"list experts.{without[0]}.keywords"
        error = RecipeError(what, expected=expected, got=f"none of {' and '.join(without)}", hint=hint)
        raise refusal(error, *at, "match")


class Recipe(Section):
    """All settings of a run."""

    name: Annotated[str, AfterValidator(_run_name)]
    """Name of the run, and of its folder."""
    seed: Whole = 0
    """Seed of all randomness."""
    workers: Annotated[Count, Field(le=64)] = 2
    """Number of parallel trainings, each with one thread; also the number of threads of the pretraining."""
    device: Text = "auto"
    """Device to compute on: cpu, cuda, cuda:1, mps, xpu, dml, or another name that torch knows; `auto`: an accelerator,
    else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of frozen weights and of the products of models in training. `auto`: bfloat16 where the device has units for
    it, else float32; results then depend on the machine."""
    checkpoint_seconds: Amount = 30.0
    """Seconds between checkpoints, more if saving is slow; 0: every step."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """Treatment of an unusable row: stop the run, or skip the row and list it in rejects.jsonl."""
    max_bad: Whole = 100
    """Maximum number of skipped rows in all files together, with `bad_rows: skip`."""
    data_root: Text | None = None
    """Folder that sources are relative to (default: the recipe's folder)."""
    base: Base
    """Model that the experts share."""
    train: Train = Train()
    """Training settings of the experts."""
    experts: Annotated[dict[str, Annotated[Expert, ByKind()]], Field(min_length=1)]
    """Experts by name."""
    router: Router
    """Router that chooses between the experts."""
    mixture: Mixture = Field(default=Mixture(), validate_default=True)
    """Site and level at which the experts are mixed."""
    evaluate: Evaluate = Evaluate()
    """Evaluation of the mixture, its parts and its controls."""
    continuous: Continuous = Continuous()
    """Settings of `train-expert --continuous`."""

    def idle(self) -> dict[str, str]:
        """The maximum of skipped rows, if the first bad row stops the run."""
        return {"max_bad": "it goes with bad_rows: skip"} if self.bad_rows == "stop" else {}

    def train_of(self, name: str) -> Train:
        """Settings of the training of an expert, or of the control `joint` or `joint_wide`.

        By default a control has as many steps as all experts with data together.
        """
        if name in self.experts:
            return self.experts[name].train.over(self.train)
        if name not in ("joint", "joint_wide"):
            trained = [*self.experts, "joint", "joint_wide"]
            raise RecipeError(f"no training '{name}'", hint=nearest(name, trained))
        steps = sum(self.train_of(expert).steps for expert in self.experts if self.experts[expert].data)
        if not steps:
            raise RecipeError(f"{name} has nothing to train on: no expert has data")
        override = self.evaluate.joint if name == "joint" else self.evaluate.joint_wide
        return override.over(self.train.model_copy(update={"steps": steps}))

    @property
    def places(self) -> dict[str, str]:
        """Places of all models of the recipe, by key."""
        found = {"base.path": self.base.place} if self.base.place else {}
        found |= {f"experts.{name}.path": expert.path for name, expert in self.experts.items() if expert.path}
        for index, spec in enumerate([self.router, *self.router.compare]):
            if spec.encoder:
                key = f"router.compare[{index - 1}]" if index else "router"
                found[f"{key}.feature.model"] = spec.encoder.model
        return found

    @property
    def sources(self) -> dict[str, str]:
        """Paths of all sources of the recipe, by key."""
        found: dict[str, Any] = {}
        for name, expert in self.experts.items():
            splits = ("train", "validation", "test")
            found |= {f"experts.{name}.data.{split}": getattr(expert.data, split, None) for split in splits}
            found[f"experts.{name}.examples"] = expert.examples
        found |= {"base.pretrain.data": self.base.pretrain and self.base.pretrain.sources}
        found |= {"evaluate.unseen": self.evaluate.unseen}
        lists = {key: some for key, some in found.items() if isinstance(some, list)}
        return {
            f"{key}[{index}]" if len(some) > 1 else key: source.path
            for key, some in lists.items()
            for index, source in enumerate(some)
        }

    def resolve(self, path: str) -> Path:
        return Path(self.data_root or "", os.path.expanduser(path))

    @field_validator("experts")
    @classmethod
    def _names(cls, experts: dict[str, Expert]) -> dict[str, Expert]:
        seen: dict[str, str] = {}
        for name in experts:
            try:
                validate_expert(name, seen)
            except RecipeError as error:
                raise refusal(error, name) from None
        return experts

    @field_validator("mixture")
    @classmethod
    def _where(cls, mixture: Mixture, info: Any) -> Mixture:
        """Fill in the site of the experts' kind; `_legal` checks the other keys against the site."""
        experts = info.data.get("experts")
        if mixture.site or not experts:
            return mixture
        return mixture.model_copy(update={"site": KINDS[next(iter(experts.values())).kind].site})

    @property
    def site(self) -> str:
        """Where the experts meet."""
        return site_of(self.kinds)

    @property
    def kinds(self) -> dict[str, Kind]:
        return {name: KINDS[expert.kind] for name, expert in self.experts.items()}

    @property
    def kind(self) -> AnyKind:
        """The kind that reads and joins the experts: the first of their site."""
        return at_site(self.site)

    @property
    def trained(self) -> list[str]:
        return [name for name, expert in self.experts.items() if expert.data and not expert.path]

    @property
    def trained_controls(self) -> tuple[Literal["joint", "joint_wide"], ...]:
        """Controls that are trained as experts are: `joint`, and `joint_wide` if the kinds support it."""
        return ("joint",) if self._no_wider else ("joint", "joint_wide")

    @property
    def _no_wider(self) -> str | None:
        return next((kind.no_wider for kind in self.kinds.values() if kind.no_wider), None)

    @model_validator(mode="after")
    def _legal(self) -> "Recipe":
        site_of(self.kinds)
        require_legal(self.kinds, self.mixture)
        if "combine" in self.mixture.model_fields_set and (why := self.mixture.idle().get("combine")):
            raise refusal(RecipeError("has no effect here", hint=why), "mixture", "combine")
        require_routable(self.router, self.kinds, self.mixture.level)
        if self.base.bits and (whole := [name for name in self.trained if self.kinds[name].trains_weights]):
            what, hint = (
                f"'{whole[0]}' trains weights of the base, in all their bits",
                "leave bits out, or train adapters",
            )
            raise refusal(RecipeError(what, got=self.base.bits, hint=hint), "base", "bits")
        if why := self._no_wider:
            if any(value is not None for _, value in self.evaluate.joint_wide):
                raise refusal(RecipeError("has no effect here", hint=why), "evaluate", "joint_wide")
            if "joint_wide" in self.evaluate.controls and self.evaluate.controls != "all":
                index = self.evaluate.controls.index("joint_wide")
                raise refusal(RecipeError("cannot be computed", hint=why), "evaluate", "controls", index)
        return self

    @property
    def classifying(self) -> list[str]:
        return [name for name, expert in self.experts.items() if expert.labelled]

    @model_validator(mode="after")
    def _alike(self) -> "Recipe":
        """Refuses rows with labels beside rows without, and keys that do not apply to them."""
        classifying = self.classifying
        if not classifying:
            if self.base.pool:
                error = RecipeError("has no effect here", hint="pool applies only to rows with labels")
                raise refusal(error, "base", "pool")
            return self
        for name, expert in self.experts.items():
            if not KINDS[expert.kind].classifies:
                what, hint = f"{expert.kind} experts do not classify", "give data without task, columns or label"
                expected = either(kind.word for kind in KINDS.values() if kind.classifies)
                raise refusal(RecipeError(what, expected=expected, hint=hint), "experts", name, "kind")
            if name not in classifying:
                what = f"'{classifying[0]}' classifies rows with labels, and '{name}' has none"
                hint = "give all experts data with task, or with columns and label, or none of them"
                raise refusal(RecipeError(what, hint=hint), "experts", name, "data" if expert.data else "examples")
        for name in classifying:
            if self.train_of(name).tether:
                own = "tether" in self.experts[name].train.model_fields_set
                at = ("experts", name, "train") if own else ("train",)
                error = RecipeError("has no effect here", hint="a tether applies only to rows without labels")
                raise refusal(error, *at, "tether")
        if self.base.pretrain:
            hint = "give a trained encoder or decoder: base: {path: ...}"
            raise refusal(RecipeError("a new base cannot classify", hint=hint), "base", "size")
        if self.evaluate.matched:
            error = RecipeError("has no effect here", hint="matched applies only to rows without labels")
            raise refusal(error, "evaluate", "matched")
        if self.evaluate.unseen:
            error = RecipeError("text without labels cannot be evaluated beside rows with labels")
            raise refusal(error, "evaluate", "unseen")
        return self

    @model_validator(mode="after")
    def _routable(self) -> "Recipe":
        depth, feature = self.router.depth or 0, self.router.feature
        for name, expert in self.experts.items():
            start, _ = layer_bounds(expert.layers)
            if start < depth and not expert.path:
                changes = KINDS[expert.kind].changes
                what = f"expert '{name}' {changes} layers from {start}, but the router reads {feature}"
                raise refusal(RecipeError(what, hint=f"set layers: {depth}.."), "experts", name, "layers")
        count = len(self.experts)
        for index, spec in enumerate([self.router, *self.router.compare]):
            at = ("router", "compare", index - 1) if index else ("router",)
            if spec.k is not None and spec.k > count:
                error = RecipeError("more than the number of experts", expected=f"at most {count}", got=spec.k)
                raise refusal(error, *at, "k")
            if spec.gates and spec.gates.balance == "quantiles" and spec.chosen(count) >= count:
                what, expected = "every token gets every expert, which leaves nothing to balance", f"k below {count}"
                raise refusal(RecipeError(what, expected=expected), *at, "gates", "balance")
            if spec.init and spec.kind == "mlp" and min(spec.hidden) < 2 * count:
                expected = f"at least {2 * count} in every layer, two for each expert"
                error = RecipeError("too narrow to start from centroids", expected=expected, got=spec.hidden)
                raise refusal(error, *at, "hidden")
            require_divided(spec, self.experts, at)
            require_words(spec, self.experts, at)
        return self
