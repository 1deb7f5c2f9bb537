"""The sections that say who decides between experts, and from what.

Knows nothing about tensors: a feature is a word here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from moesaic.config import FEATURES, Feature, SelectionKind
from moesaic.errors import RecipeError, nearest
from moesaic.sections.section import CASE, Amount, Count, Distinct, Positive, Section, Text, Whole, refusal


class RouterLoss(Section):
    """What a router's loss adds up."""

    task: Amount = 0.0
    """Weight of the mixture's own loss on the responses under the router's weights; the experts stay as they are."""
    expert: Amount = 1.0
    """Weight of the cross entropy against the row's own expert."""
    balance: Amount = 0.0
    """Weight of the load-balancing loss."""
    z: Amount = 0.0
    """Weight of the router z-loss."""

    @model_validator(mode="after")
    def _teaches(self) -> "RouterLoss":
        if not self.task and not self.expert:
            hint = "give task or expert a weight: balance and z only restrain what those teach"
            raise refusal(RecipeError("nothing to learn from", hint=hint))
        return self


class Exploration(Section):
    """What a router's training tries beside its best choice; deciding is exact, always."""

    kind: Literal["none", "gumbel", "noisy_top_k"] = "none"
    """How: gumbel draws one expert a row, with the softmax's gradient; noisy_top_k adds noise, of learned size, to the
    logits."""
    temperature: Positive = 1.0
    """What gumbel divides its logits by; the lower, the nearer its gradient is to the choice made."""

    def idle(self) -> dict[str, str]:
        """A temperature without gumbel."""
        return {} if self.kind == "gumbel" else {"temperature": f"exploration {self.kind} has no temperature"}


class EncoderFeature(Section):
    """A vector of the prompt's text, made by an encoder that is no part of the base."""

    kind: Literal["encoder"]
    """That it is one."""
    model: Text
    """A BERT or RoBERTa, pooled as it says: a folder with all that goes with it, or `org/name@revision` of the hub."""

    def __str__(self) -> str:
        return self.kind


def _word_or_encoder(value: Any) -> str:
    return CASE + ("encoder" if isinstance(value, Mapping | EncoderFeature) else "word")


FeatureSpec = Annotated[
    Annotated[str, Tag(CASE + "word")] | Annotated[EncoderFeature, Tag(CASE + "encoder")],
    Discriminator(_word_or_encoder),
]


def _usual_feature(section: dict[str, Any]) -> str:
    return {"keyword": "text", "attention": "hidden_tokens"}.get(section.get("kind", ""), "hidden_mean")


class RouterSpec(Section):
    """A router: what it reads, how it is trained, how its logits become weights."""

    kind: Literal["keyword", "centroid", "linear", "mlp", "attention"]
    """How a feature becomes logits."""
    feature: FeatureSpec = Field(default_factory=_usual_feature)
    """What it reads: text, characters (how often which follow each other), embedding_mean, hidden_mean, hidden_last,
    hidden@K or hidden@K_last (after K blocks); with _tokens in the place of the pooling, what attention pools itself;
    or `{kind: encoder, model: FOLDER}`."""
    hidden: list[Count] = Field(default=[256], min_length=1)
    """Widths of the mlp's hidden layers; of attention, the one in which it attends."""
    heads: Count = 4
    """Queries of attention, each with its share of the width."""
    bias: bool = True
    """Whether a linear router adds one to its logits."""
    init: Literal["centroids"] | None = None
    """How a linear router or an mlp begins: deciding as a centroid router does; at random where none is given."""
    selection: SelectionKind = "top_1"
    """How logits become weights."""
    k: Count | None = None
    """Experts that top_k keeps."""
    renormalise: bool = True
    """Whether the weights of the kept experts are scaled to sum to 1; without it they keep their probabilities."""
    loss: RouterLoss = RouterLoss()
    """What the loss adds up."""
    exploration: Exploration = Exploration()
    """What its training tries beside its best choice."""
    mix: Literal["balanced", "proportional"] = "balanced"
    """How experts with unequal numbers of examples count: all alike, by weights, or each by its number."""
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
    """Share of the hidden states of mlp or attention that is dropped in training."""

    @property
    def encoder(self) -> EncoderFeature | None:
        """The encoder that the router reads, if it reads one."""
        return None if isinstance(self.feature, str) else self.feature

    def idle(self) -> dict[str, str]:
        """What only some kinds, a trained router or top_k has a use for."""
        idle: dict[str, str] = {}
        if self.kind not in ("mlp", "attention"):
            idle |= dict.fromkeys(("hidden", "dropout"), f"a {self.kind} router has no hidden layers")
        if self.kind != "attention":
            idle["heads"] = f"a {self.kind} router does not attend"
        if self.kind != "linear":
            idle["bias"] = "only a linear router can do without"
        if self.kind not in ("linear", "mlp"):
            idle["init"] = f"a {self.kind} router does not begin with layers that could decide as centroids do"
        if self.kind in ("keyword", "centroid"):
            trained = ("loss", "exploration", "mix", "epochs", "batch", "lr", "weight_decay", "patience", "dropout")
            idle |= dict.fromkeys(trained, f"a {self.kind} router is not trained by gradient")
        if self.selection != "top_k":
            idle["k"] = f"selection {self.selection} has no k"
        return idle

    @property
    def depth(self) -> int | None:
        """Blocks of the base that the feature needs, where it says how many."""
        return Feature.parse(self.feature).depth or None if isinstance(self.feature, str) else None

    @property
    def reads(self) -> list[FeatureSpec]:
        """Its feature; with noise also the mean of the same states, from which the size of the noise is learned."""
        noisy = self.exploration.kind == "noisy_top_k" and isinstance(self.feature, str)
        if noisy and str(self.feature).endswith("_last"):
            mean = str(self.feature).removesuffix("_last")
            return [self.feature, "hidden_mean" if mean == "hidden" else mean]
        return [self.feature]

    @property
    def certain(self) -> bool:
        """Whether the chosen expert has all the weight, however probable it was."""
        return self.renormalise and (self.selection == "top_1" or self.k == 1)

    @property
    def untaught(self) -> bool:
        """Whether the loss of the task is asked for and cannot teach: its weights are 1 whatever the logits are."""
        return bool(self.loss.task) and self.certain and self.exploration.kind != "gumbel"

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
        what = f"a {self.kind} router cannot read '{self.feature}'"
        if (self.kind == "keyword") != (self.feature == "text"):
            expected = "text" if self.kind == "keyword" else "characters, or a feature of the base"
            raise refusal(RecipeError(what, expected=expected), "feature")
        tokens = isinstance(self.feature, str) and Feature.parse(self.feature).pool == "none"
        if (self.kind == "attention") != tokens:
            expected = "embedding_tokens, hidden_tokens or hidden@K_tokens"
            expected = expected if self.kind == "attention" else "a pooled feature: only attention pools by itself"
            raise refusal(RecipeError(what, expected=expected), "feature")
        if self.selection == "top_k" and self.k is None:
            raise refusal(RecipeError("missing", hint="selection top_k needs it: the number of experts kept"), "k")
        if self.kind == "attention" and (len(self.hidden) > 1 or self.hidden[0] % self.heads):
            expected = f"one width, a multiple of heads = {self.heads}"
            raise refusal(RecipeError("heads share one width evenly", expected=expected, got=self.hidden), "hidden")
        return self

    @model_validator(mode="after")
    def _begins(self) -> "RouterSpec":
        if self.init and not self.bias:
            raise refusal(RecipeError("centroids lie around a centre, which takes a bias", expected="true"), "bias")
        return self

    @model_validator(mode="after")
    def _explores(self) -> "RouterSpec":
        how = self.exploration.kind
        error: RecipeError | None = None
        if how == "gumbel" and not self.loss.task:
            hint = "give loss.task a weight: the other losses are of the logits, and draw nobody"
            error = RecipeError("gumbel has no effect here", hint=hint)
        elif how == "gumbel" and not self.certain:
            error = RecipeError("gumbel draws one expert with weight 1", expected="top_1 with renormalise")
        elif how == "noisy_top_k" and self.selection == "soft":
            error = RecipeError("noise decides who is kept, and soft keeps all", expected="selection top_k or top_1")
        elif how == "noisy_top_k" and (not isinstance(self.feature, str) or self.feature == "characters"):
            what = "the size of the noise is learned from the mean of the base's states"
            error = RecipeError(what, expected="a feature of the base")
        if error:
            raise refusal(error, "exploration", "kind")
        return self


class Router(RouterSpec):
    """The mixture's router, and those it is compared with."""

    prompt_tokens: Count = 64
    """Of plain text, the tokens that count as the prompt: read by every router, scored by none."""
    compare: Annotated[list[RouterSpec], Distinct] = Field(default=[])
    """Routers that are tried beside it and tabulated."""
