"""The recipe, section by section: its keys, their defaults, and the checks of keys beside each other.

Knows nothing about YAML, files' contents or tensors; no section ever changes after its check.
"""

import os
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
from moesaic.sections.places import settled
from moesaic.sections.routers import Router
from moesaic.sections.section import CASE, Amount, Count, Distinct, Section, Text, Whole, either, refusal
from moesaic.sections.sources import Sources, case_by_key
from moesaic.sections.texts import Texts
from moesaic.sections.training import Pretrain, Train, TrainOverride

Metric = Literal["perplexity", "accuracy"]


def _run_name(name: str) -> str:
    try:
        return validate_name(name, "a run")
    except RecipeError as error:
        raise refusal(error) from None


class ExistingBase(Section):
    """A base that exists already."""

    path: Text
    """Folder with config.json, safetensors and a tokenizer, `org/name@revision` of the hub, or `shipped:tiny`."""
    pool: Literal["first", "mean", "last"] | None = None
    """State of a row to read a label from (default: as is usual for the base): of the first token, as in encoders,
    through the pooler of a BERT that has one; of the last token, as in decoders; or the mean over all tokens."""

    @property
    def place(self) -> str:
        """Where the base is: a folder, an id of the hub or a shipped model."""
        return self.path

    @property
    def pretrain(self) -> None:
        """An existing base is not pretrained."""
        return None

    @property
    def new(self) -> "NewBase | None":
        """The section of a base that is pretrained in the run."""
        return None

    def settled(self, folder: Path) -> "ExistingBase":
        """The base with a place that means the same from anywhere, where `folder` is the recipe's."""
        return self.model_copy(update={"path": settled(self.path, folder)})


class NewBase(Section):
    """A base that is pretrained here, from nothing."""

    size: str
    """Name of its shape."""
    vocab_size: Annotated[int, Field(ge=257, le=2**20)] = 512
    """Entries of its tokenizer: 256 bytes, an end, and merges."""
    pretrain: Pretrain
    """Settings of the pretraining."""

    @property
    def place(self) -> None:
        """A new base is made in the run directory."""
        return None

    @property
    def pool(self) -> None:
        """No label is read from a new base."""
        return None

    @property
    def new(self) -> "NewBase":
        """The section of a base that is pretrained in the run."""
        return self

    def settled(self, folder: Path) -> "NewBase":
        """The same base: it names no folder."""
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
    """Measurements, and the controls beside the mixture."""

    metrics: Annotated[list[Metric], Distinct] = Field(default=list(get_args(Metric)), min_length=1)
    """Metrics to report beside nats per token: perplexity of every contender, accuracy of every router."""
    controls: Annotated[
        Annotated[Literal["all"], Tag(CASE + "all")] | Annotated[list[Control], Distinct, Tag(CASE + "some")],
        Discriminator(_all_or_some),
    ] = "all"
    """Contenders to measure the mixture against."""
    unseen: Sources = Field(default=[])
    """Files of text from domains that no expert was trained on."""
    limit: Count = 200
    """Rows of a domain at most."""
    batch: Count = 16
    """Rows in a batch."""
    joint: TrainOverride = TrainOverride()
    """Training settings of the control `joint` only."""
    joint_wide: TrainOverride = TrainOverride()
    """Training settings of the control `joint_wide` only."""
    samples: Whole = 2
    """Generations of each domain to show in the report."""
    generate: Texts | None = None
    """Texts to generate after test prompts and to score (default: none)."""
    matched: Count | None = None
    """Number of tokens from the middle of every test prompt to judge routers by once more, so that neither length nor
    beginning nor end gives the expert away; shorter prompts are left out (default: no such test)."""


class Recipe(Section):
    """Everything that decides a run."""

    name: Annotated[str, AfterValidator(_run_name)]
    """Name of the run, and of its folder."""
    seed: Whole = 0
    """Seed of all randomness."""
    workers: Annotated[Count, Field(le=64)] = 2
    """Trainings to run side by side, each with one thread; also the threads of the base's own training."""
    checkpoint_seconds: Amount = 30.0
    """Seconds between two saves of a training's state, more where saving takes long; 0: every step."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """Treatment of a row that cannot be used: stop the run, or skip the row and list it in rejects.jsonl."""
    max_bad: Whole = 100
    """Most rows to skip with `bad_rows: skip`, in all files together; one more stops the run."""
    data_root: Text | None = None
    """Folder that sources are relative to, itself relative to the recipe's folder (default: the recipe's folder)."""
    base: Base
    """The model that the experts share."""
    train: Train = Train()
    """Settings of the experts' trainings."""
    experts: Annotated[dict[str, Annotated[Expert, ByKind()]], Field(min_length=1)]
    """The experts, by name."""
    router: Router
    """The router, which decides between the experts."""
    mixture: Mixture = Field(default=Mixture(), validate_default=True)
    """Where and how finely the experts are mixed."""
    evaluate: Evaluate = Evaluate()
    """Measurements of the mixture, its parts and its controls."""

    def idle(self) -> dict[str, str]:
        """The number of bad rows, where the first one stops the run."""
        return {"max_bad": "it goes with bad_rows: skip"} if self.bad_rows == "stop" else {}

    def train_of(self, name: str) -> Train:
        """The settings of one training: an expert's, or those of the control `joint` or `joint_wide`.

        Where a control's steps are not written, it has as many as all experts with data together.
        """
        if name in self.experts:
            return self.experts[name].train.over(self.train)
        if name not in ("joint", "joint_wide"):
            trained = [*self.experts, "joint", "joint_wide"]
            raise RecipeError(f"nothing called '{name}' is trained", hint=nearest(name, trained))
        steps = sum(self.train_of(expert).steps for expert in self.experts if self.experts[expert].data)
        if not steps:
            raise RecipeError(f"{name} has nothing to train on: no expert has data")
        override = self.evaluate.joint if name == "joint" else self.evaluate.joint_wide
        return override.over(self.train.model_copy(update={"steps": steps}))

    @property
    def places(self) -> dict[str, str]:
        """Where the models are that the recipe names, by the key that names each."""
        found = {"base.path": self.base.place} if self.base.place else {}
        found |= {f"experts.{name}.path": expert.path for name, expert in self.experts.items() if expert.path}
        for index, spec in enumerate([self.router, *self.router.compare]):
            if spec.encoder:
                key = f"router.compare[{index - 1}]" if index else "router"
                found[f"{key}.feature.model"] = spec.encoder.model
        return found

    def resolve(self, path: str) -> Path:
        """Where a source's file is."""
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
        """The site of the experts' kind, where none is given; `_legal` refuses what does not go with the site."""
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
        """Each expert's kind."""
        return {name: KINDS[expert.kind] for name, expert in self.experts.items()}

    @property
    def kind(self) -> AnyKind:
        """The kind that reads and joins the experts: the first of their site."""
        return at_site(self.site)

    @property
    def trained(self) -> list[str]:
        """The experts that are trained in the run; the others were trained elsewhere."""
        return [name for name, expert in self.experts.items() if expert.data and not expert.path]

    @property
    def trained_controls(self) -> tuple[Literal["joint", "joint_wide"], ...]:
        """The controls that are trained like an expert: `joint`, and `joint_wide` where the kinds have one."""
        return ("joint",) if self._no_wider else ("joint", "joint_wide")

    @property
    def _no_wider(self) -> str | None:
        """Why there is no `joint_wide`; None: there is one."""
        return next((kind.no_wider for kind in self.kinds.values() if kind.no_wider), None)

    @model_validator(mode="after")
    def _legal(self) -> "Recipe":
        site_of(self.kinds)
        require_legal(self.kinds, self.mixture)
        if "combine" in self.mixture.model_fields_set and (why := self.mixture.idle().get("combine")):
            raise refusal(RecipeError("has no effect here", hint=why), "mixture", "combine")
        require_routable(self.router, self.kinds, self.mixture.level)
        if why := self._no_wider:
            if any(value is not None for _, value in self.evaluate.joint_wide):
                raise refusal(RecipeError("has no effect here", hint=why), "evaluate", "joint_wide")
            if "joint_wide" in self.evaluate.controls and self.evaluate.controls != "all":
                place = self.evaluate.controls.index("joint_wide")
                raise refusal(RecipeError("cannot be computed", hint=why), "evaluate", "controls", place)
        return self

    @property
    def classifying(self) -> list[str]:
        """The experts whose rows have labels: all of them, or none."""
        return [name for name, expert in self.experts.items() if expert.labelled]

    @model_validator(mode="after")
    def _alike(self) -> "Recipe":
        """Refuses experts that classify beside experts that write, and text without labels beside rows with labels."""
        classifying = self.classifying
        if not classifying:
            if self.base.pool:
                error = RecipeError("has no effect here", hint="it goes with rows that have labels")
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
        if self.base.pretrain:
            hint = "name a trained encoder or decoder: base: {path: ...}"
            raise refusal(RecipeError("a base for rows with labels is not pretrained here", hint=hint), "base", "size")
        if self.evaluate.matched:
            error = RecipeError(
                "has no effect here", hint="it goes with prompts of texts, not with rows that have labels"
            )
            raise refusal(error, "evaluate", "matched")
        if self.evaluate.unseen:
            error = RecipeError("text without labels cannot be judged beside rows that have some")
            raise refusal(error, "evaluate", "unseen")
        return self

    @model_validator(mode="after")
    def _routable(self) -> "Recipe":
        depth, feature = self.router.depth or 0, self.router.feature
        for name, expert in self.experts.items():
            start, _ = layer_bounds(expert.layers)
            if start < depth and not expert.path:
                what = (
                    f"expert '{name}' {KINDS[expert.kind].changes} layers from {start}, but the router reads {feature}"
                )
                raise refusal(RecipeError(what, hint=f"set layers: {depth}.."), "experts", name, "layers")
        for index, spec in enumerate([self.router, *self.router.compare]):
            if spec.k is not None and spec.k > len(self.experts):
                at = ("compare", index - 1) if index else ()
                error = RecipeError("more experts than there are", expected=f"at most {len(self.experts)}", got=spec.k)
                raise refusal(error, "router", *at, "k")
            if spec.init and spec.kind == "mlp" and min(spec.hidden) < 2 * len(self.experts):
                at = ("compare", index - 1) if index else ()
                expected = f"at least {2 * len(self.experts)} in every layer, two for each expert"
                error = RecipeError("too narrow to begin at centroids", expected=expected, got=spec.hidden)
                raise refusal(error, "router", *at, "hidden")
        return self
