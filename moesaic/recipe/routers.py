"""The sections that say who decides between experts, and from what.

Knows nothing about tensors: a feature is a word here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from moesaic.config import FEATURES, Feature
from moesaic.errors import RecipeError, nearest
from moesaic.recipe.section import CASE, Amount, Count, Distinct, Positive, Section, Text, Whole, refusal


class RouterLoss(Section):
    """What a router's loss adds up."""

    expert: Amount = 1.0
    """Weight of the cross entropy against the row's own expert."""
    balance: Amount = 0.0
    """Weight of the load-balancing loss."""
    z: Amount = 0.0
    """Weight of the router z-loss."""


class EncoderFeature(Section):
    """A vector of the prompt's text, made by an encoder that is no part of the base."""

    kind: Literal["encoder"]
    """That it is one."""
    model: Text
    """Folder of a BERT or RoBERTa: config.json, model.safetensors, tokenizer.json; how it pools, where it says so."""

    def __str__(self) -> str:
        return self.kind


def _word_or_encoder(value: Any) -> str:
    return CASE + ("encoder" if isinstance(value, Mapping | EncoderFeature) else "word")


FeatureSpec = Annotated[
    Annotated[str, Tag(CASE + "word")] | Annotated[EncoderFeature, Tag(CASE + "encoder")],
    Discriminator(_word_or_encoder),
]


def _usual_feature(section: dict[str, Any]) -> str:
    return "text" if section.get("kind") == "keyword" else "hidden_mean"


class RouterSpec(Section):
    """A router: what it reads, how it is trained, how its logits become weights."""

    kind: Literal["keyword", "centroid", "linear", "mlp"]
    """How a feature becomes logits."""
    feature: FeatureSpec = Field(default_factory=_usual_feature)
    """What it reads: text, embedding_mean, hidden_mean, hidden_last, hidden@K or hidden@K_last (after K blocks); or
    `{kind: encoder, model: FOLDER}`."""
    hidden: list[Count] = Field(default=[256], min_length=1)
    """Widths of the mlp's hidden layers."""
    selection: Literal["soft", "top_k", "top_1"] = "top_1"
    """How logits become weights."""
    k: Count | None = None
    """Experts that top_k keeps."""
    renormalise: bool = True
    """Whether the weights of the kept experts are scaled to sum to 1; without it they keep their probabilities."""
    loss: RouterLoss = RouterLoss()
    """What the loss adds up."""
    examples: Count | None = None
    """Labelled examples per expert to learn from at most."""
    epochs: Count = 40
    """Passes over the examples."""
    batch: Count = 64
    """Examples in a batch."""
    lr: Positive = 1e-3
    """Learning rate."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay."""
    patience: Whole = 8
    """Epochs without improvement before training stops; 0: never."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the mlp's hidden states that is dropped in training."""

    def idle(self) -> dict[str, str]:
        """What only an mlp, a trained router or top_k has a use for."""
        idle: dict[str, str] = {}
        if self.kind != "mlp":
            idle |= dict.fromkeys(("hidden", "dropout"), f"a {self.kind} router has no hidden layers")
        if self.kind in ("keyword", "centroid"):
            trained = ("loss", "epochs", "batch", "lr", "weight_decay", "patience", "dropout")
            idle |= dict.fromkeys(trained, f"a {self.kind} router is not trained by gradient")
        if self.selection != "top_k":
            idle["k"] = f"selection {self.selection} has no k"
        return idle

    @property
    def depth(self) -> int | None:
        """Blocks of the base that the feature needs, where it says how many."""
        return Feature.parse(self.feature).depth or None if isinstance(self.feature, str) else None

    @field_validator("feature")
    @classmethod
    def _known(cls, feature: str | EncoderFeature) -> str | EncoderFeature:
        if not isinstance(feature, str):
            return feature
        try:
            Feature.parse(feature)
        except RecipeError as error:
            written = "write {kind: encoder, model: FOLDER}" if feature == "encoder" else None
            hint = written or nearest(feature, list(FEATURES))
            raise refusal(RecipeError(error.what, expected=error.expected, got=repr(feature), hint=hint)) from None
        return feature

    @model_validator(mode="after")
    def _consistent(self) -> "RouterSpec":
        if (self.kind == "keyword") != (self.feature == "text"):
            expected = "text" if self.kind == "keyword" else "a feature of the base: text is for keyword routers"
            what = f"a {self.kind} router cannot read '{self.feature}'"
            raise refusal(RecipeError(what, expected=expected), "feature")
        if self.selection == "top_k" and self.k is None:
            raise refusal(RecipeError("missing", hint="selection top_k needs it: the number of experts kept"), "k")
        return self


class Router(RouterSpec):
    """The mixture's router, and those it is compared with."""

    prompt_tokens: Count = 64
    """Of plain text, the tokens that count as the prompt: read by every router, scored by none."""
    compare: Annotated[list[RouterSpec], Distinct] = Field(default=[])
    """Routers that are tried beside it and tabulated."""
