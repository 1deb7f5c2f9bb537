"""The sections about routers and the features that they read.

Knows nothing about tensors: a feature is a word here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from moesaic.config import COUNTS, FEATURES, Feature, SelectionKind
from moesaic.errors import RecipeError, nearest
from moesaic.sections.gates import TokenGates
from moesaic.sections.section import CASE, Amount, Count, Distinct, Positive, Section, Text, Whole, refusal


class RouterLoss(Section):
    """Weights of the terms of a router's loss."""

    task: Amount = 0.0
    """Weight of the mixture's loss on the responses; only the router is trained."""
    expert: Amount = 1.0
    """Weight of the cross entropy with the row's expert as the label."""
    balance: Amount = 0.0
    """Weight of the load-balancing loss."""
    z: Amount = 0.0
    """Weight of the router z-loss."""

    @model_validator(mode="after")
    def _teaches(self) -> "RouterLoss":
        if not self.task and not self.expert:
            hint = "give task or expert a weight: balance and z only regularise"
            raise refusal(RecipeError("nothing to learn from", hint=hint))
        return self


class Exploration(Section):
    """Exploration in a router's training; later decisions are always exact."""

    kind: Literal["none", "gumbel", "noisy_top_k"] = "none"
    """Way to explore: gumbel samples one expert per row, with the gradient of the softmax; noisy_top_k adds noise of
    learned size to the logits."""
    temperature: Positive = 1.0
    """Divisor of the logits in gumbel; a lower one gives a gradient closer to the sampled choice."""

    def idle(self) -> dict[str, str]:
        """The temperature without gumbel."""
        return {} if self.kind == "gumbel" else {"temperature": f"exploration {self.kind} has no temperature"}


class EncoderFeature(Section):
    """A vector of the prompt's text, from an encoder outside the base."""

    kind: Literal["encoder"]
    """The feature is a vector of an encoder."""
    model: Text
    """Folder or `org/name@revision` of a BERT or RoBERTa, with its own pooling."""

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


def _inside(section: dict[str, Any]) -> bool:
    return section.get("kind") == GATES


GATES: Literal["gates"] = "gates"
"""The kind of routers that route tokens inside the layers."""


class RouterSpec(Section):
    """A router: its feature, its training, and the selection of experts."""

    kind: Literal["keyword", "centroid", "linear", "mlp", "attention", "tree", "gates"]
    """Way to compute logits from a feature; gates: a matrix in each layer routes every token there."""
    feature: FeatureSpec = Field(default_factory=_usual_feature)
    """Feature to read: text, characters (counts of character sequences), wording (these and the last words),
    embedding_mean, hidden_mean, hidden_last, hidden@K or hidden@K_last (after K blocks); embedding_tokens,
    hidden_tokens or hidden@K_tokens for attention; or `{kind: encoder, model: FOLDER}` (default: text for keyword,
    hidden_tokens for attention, otherwise hidden_mean)."""
    groups: dict[Text, Annotated[list[Text], Field(min_length=1)]] | None = None
    """Experts of each group of a tree, by a name for the group: one mlp decides between the groups, and one inside each
    group of several experts."""
    match: Literal["first"] | None = None
    """Rule of a keyword router: first chooses the first expert, in the order of the recipe, with a keyword anywhere in
    the text, even inside a word, and the expert without keywords where there is none (default: the expert with the most
    occurrences of its words as whole words)."""
    hidden: list[Count] = Field(default=[256], min_length=1)
    """Widths of the hidden layers of an mlp or of each mlp of a tree, or the single width of attention."""
    heads: Count = 4
    """Number of queries of attention, which share the width."""
    bias: bool = True
    """Whether a linear router has a bias."""
    init: Literal["centroids"] | None = None
    """Initial weights of a linear router or an mlp: those that decide as a centroid router does (default: random)."""
    selection: SelectionKind = Field(default_factory=lambda section: "top_k" if _inside(section) else "top_1")
    """Way to select experts and compute weights from logits (default: top_k for gates, otherwise top_1)."""
    k: Count | None = Field(
        default_factory=lambda section: 2 if _inside(section) and section.get("selection") == "top_k" else None
    )
    """Number of experts that top_k selects (default: 2 for gates)."""
    renormalise: bool = True
    """Whether the weights of the selected experts are scaled to sum to 1; otherwise they are probabilities."""
    loss: RouterLoss = RouterLoss()
    """Weights of the terms of the loss."""
    exploration: Exploration = Exploration()
    """Exploration in training."""
    mix: Literal["balanced", "proportional"] = "balanced"
    """Weight of experts with unequal numbers of examples: all equal, or proportional to the number."""
    examples: Count | None = None
    """Maximum number of training examples per expert (default: all)."""
    epochs: Count = 40
    """Maximum number of passes over the examples."""
    batch: Count = 64
    """Examples in a batch."""
    lr: Positive = 1e-3
    """Learning rate."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay."""
    patience: Whole = 8
    """Epochs without improvement before training stops; 0: never stop early."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout rate of the hidden states of an mlp, a tree or attention."""
    abstain: Literal["auto", "off"] | Annotated[float, Field(gt=0, lt=1)] = "auto"
    """Prompts that are left to the base because they belong to no expert: auto abstains where the base is more probable
    than all experts together, but on at most 2% of the experts' own prompts by their validation; a number is the least
    probability of belonging to an expert; off never abstains. Between a limit below 0.5 and 0.5, the expert's weight
    rises from 0 to 1, and the base has the rest."""

    gates: TokenGates | None = Field(default_factory=lambda section: TokenGates() if _inside(section) else None)
    """Values and training of gates."""

    @property
    def title(self) -> str:
        """The kind, with the rule of a keyword router that does not count."""
        return f"{self.kind}, {self.match} match" if self.match else self.kind

    @property
    def encoder(self) -> EncoderFeature | None:
        return None if isinstance(self.feature, str) else self.feature

    def idle(self) -> dict[str, str]:
        """Keys of other kinds of routers, of trained routers and of top_k."""
        if self.kind == GATES:
            return dict.fromkeys(OF_PROMPTS, "gates route tokens in the layers: see router.gates")
        idle: dict[str, str] = {"gates": f"a {self.kind} router decides about prompts"}
        if self.kind not in ("mlp", "attention", "tree"):
            idle |= dict.fromkeys(("hidden", "dropout"), f"a {self.kind} router has no hidden layers")
        if self.kind != "attention":
            idle["heads"] = f"a {self.kind} router does not attend"
        if self.kind != "linear":
            idle["bias"] = "only a linear router can omit its bias"
        if self.kind not in ("linear", "mlp"):
            idle["init"] = f"a {self.kind} router cannot be initialised with centroids"
        if self.kind in ("keyword", "centroid"):
            trained = ("loss", "exploration", "mix", "epochs", "batch", "lr", "weight_decay", "patience", "dropout")
            idle |= dict.fromkeys(trained, f"a {self.kind} router is not trained by gradient")
        if self.kind != "tree":
            idle["groups"] = f"a {self.kind} router decides between all experts at once"
        if self.kind != "keyword":
            idle["match"] = f"a {self.kind} router does not read words"
        if self.kind == "keyword":
            idle["abstain"] = "a keyword router abstains on prompts without any of its words"
        if self.selection != "top_k":
            idle["k"] = f"selection {self.selection} has no k"
        return idle

    def chosen(self, num_experts: int) -> int:
        """Number of experts that get a weight."""
        return {"soft": num_experts, "top_1": 1}.get(self.selection, self.k or 1)

    @property
    def depth(self) -> int | None:
        """Number of blocks of the base that the feature needs; None: all, or none."""
        return Feature.parse(self.feature).depth or None if isinstance(self.feature, str) else None

    @property
    def reads(self) -> list[FeatureSpec]:
        """Features to read: with noise also the mean of the same states, which the size of the noise depends on."""
        noisy = self.exploration.kind == "noisy_top_k" and isinstance(self.feature, str)
        if noisy and str(self.feature).endswith("_last"):
            mean = str(self.feature).removesuffix("_last")
            return [self.feature, "hidden_mean" if mean == "hidden" else mean]
        return [self.feature]

    @property
    def certain(self) -> bool:
        """Whether the chosen expert always has weight 1."""
        return self.renormalise and (self.selection == "top_1" or self.k == 1)

    @property
    def untaught(self) -> bool:
        """Whether the task's loss has no gradient, because weights are always 1."""
        return bool(self.loss.task) and self.certain and self.exploration.kind != "gumbel"

    @field_validator("abstain", mode="before")
    @classmethod
    def _word(cls, abstain: Any) -> Any:
        return "off" if abstain is False else abstain  # YAML reads `off` as false

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
            expected = expected if self.kind == "attention" else "a pooled feature: only attention reads tokens"
            raise refusal(RecipeError(what, expected=expected), "feature")
        if self.selection == "top_k" and self.k is None:
            raise refusal(RecipeError("missing", hint="selection top_k needs k, the number of selected experts"), "k")
        if self.kind == "attention" and (len(self.hidden) > 1 or self.hidden[0] % self.heads):
            what, expected = "the heads do not divide the width", f"one width, a multiple of heads = {self.heads}"
            raise refusal(RecipeError(what, expected=expected, got=self.hidden), "hidden")
        return self

    @model_validator(mode="after")
    def _learns(self) -> "RouterSpec":
        if self.gates and self.gates.steps != 0 and self.certain:
            what, hint = "a single expert of weight 1 gives gates no gradient", "or set gates.steps: 0"
            expected = "k of 2 or more, or renormalise: false"
            raise refusal(RecipeError(what, expected=expected, hint=hint), "selection")
        return self

    @model_validator(mode="after")
    def _grouped(self) -> "RouterSpec":
        if self.kind != "tree":
            return self
        if self.groups is None:
            hint = "name the experts of each group, as in groups: {exact: [math, code], open: [chat, knowledge]}"
            raise refusal(RecipeError("missing", hint=hint), "groups")
        if len(self.groups) < 2:
            got = ", ".join(self.groups) or "none"
            raise refusal(RecipeError("too few groups", expected="two or more", got=got), "groups")
        return self

    @model_validator(mode="after")
    def _begins(self) -> "RouterSpec":
        if self.init and not self.bias:
            raise refusal(RecipeError("init: centroids needs a bias", expected="true"), "bias")
        return self

    @model_validator(mode="after")
    def _explores(self) -> "RouterSpec":
        how = self.exploration.kind
        error: RecipeError | None = None
        if how == "gumbel" and not self.loss.task:
            hint = "give loss.task a weight: the other losses do not sample experts"
            error = RecipeError("gumbel has no effect here", hint=hint)
        elif how == "gumbel" and not self.certain:
            error = RecipeError("gumbel samples one expert with weight 1", expected="top_1 with renormalise")
        elif how == "noisy_top_k" and self.selection == "soft":
            error = RecipeError("noise has no effect: soft selects all experts", expected="selection top_k or top_1")
        elif how == "noisy_top_k" and self.kind == "tree":
            error = RecipeError("a tree has no logits of experts to add noise to", expected="none or gumbel")
        elif how == "noisy_top_k" and (not isinstance(self.feature, str) or self.feature in COUNTS):
            what = "the size of the noise is learned from the mean of the base's states"
            error = RecipeError(what, expected="a feature of the base")
        if error:
            raise refusal(error, "exploration", "kind")
        return self


OF_PROMPTS = (
    *("feature", "groups", "match", "hidden", "heads", "bias", "init", "loss", "exploration", "mix", "examples"),
    *("epochs", "batch", "lr", "weight_decay", "patience", "dropout", "abstain"),
)
"""Keys of routers that decide about prompts."""


class Router(RouterSpec):
    """The router of the mixture, and routers to compare it with."""

    prompt_tokens: Count = 64
    """Number of tokens at the start of plain text that are its prompt: read by routers, not scored."""
    compare: Annotated[list[RouterSpec], Distinct] = Field(default=[])
    """Routers to train and report for comparison."""
