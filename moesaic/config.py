"""The size and wiring of models as frozen dataclasses, and the named sizes as data.

Knows nothing about torch, files or other people's config keys (`interop/` translates those).
"""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from moesaic.errors import RecipeError

Activation = Literal["silu", "gelu_tanh"]
HeadFilling = Literal["", "mixer", "residual_mixer", "gate"]
"""What lies between attention and its output projection; "": nothing."""
RouterScores = Literal["softmax", "sigmoid"]
"""What the router of a sparse ffn makes of its logits."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Slows rotary positions by `factor`, so that they reach beyond the context of their training.

    `linear` slows all frequencies. `llama3` slows those of fewer than `low_freq_factor` turns in `original_context`,
    leaves those of more than `high_freq_factor` turns, and blends in between.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        good = self.factor >= 1 and self.original_context >= 1 and 0 < self.low_freq_factor < self.high_freq_factor
        expected = "factor >= 1, original_context >= 1, 0 < low_freq_factor < high_freq_factor"
        _require(good, "not a scaling of rotary positions", "rope_scaling", str(asdict(self)), expected)


def _require(good: bool, what: str, field: str, got: Any, expected: str | None = None) -> None:
    if not good:
        raise RecipeError(what, field=field, expected=expected, got=got)


def _require_positive(config: Any, *fields: str) -> None:
    for field in fields:
        size = getattr(config, field)
        _require(size >= 1, "a model size must be positive", field, size, ">= 1")


Pool = Literal["first", "mean", "last"]
"""Which state of a row is read: that of its first token, of its last, or the mean over all."""


@dataclass(frozen=True)
class LabelHead:
    """The classification head that transformers gives a base.

    `family`: bases whose heads are alike. `pool`: the state that the head reads. `dense`: whether x -> tanh(W x + b)
    comes before the logits. `bias`: whether the logits have a bias.
    """

    family: str
    pool: Pool
    dense: bool
    bias: bool


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The size and wiring of a decoder. Families differ only in these values; nothing computes by a family's name."""

    decodes: ClassVar[bool] = True  # the model predicts the next token
    ffn_states: ClassVar[int] = 4  # inner states of a feed-forward block: gate, up, activation, product
    pad: ClassVar[int] = 0  # fills the shorter rows of a batch: any token will do, as no token sees later ones
    label_head: ClassVar[LabelHead] = LabelHead("decoder", "last", dense=False, bias=False)

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    context: int
    head_dim: int = 0  # 0: hidden_size / num_heads
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    family: str = "llama"  # the format of its files: see TRAITS
    rope_scaling: RopeScaling | None = None
    activation: Activation = "silu"
    qkv_bias: bool = False
    attention_bias: bool = False  # of queries, keys, values and output
    mlp_bias: bool = False
    qk_norm: bool = False  # normalises queries and keys, each head by itself, before their rotation
    query_scalar: int = 0  # attention scores are divided by its root; 0: head_dim
    norm_offset: float = 0.0  # added to the weights of every norm
    sandwich_norms: bool = False  # a norm after attention and ffn too
    scaled_embedding: bool = False  # embeddings times the root of hidden_size
    window: int = 0  # tokens, itself included, that a token sees in the local layers
    local_layers: tuple[int, ...] = ()
    local_rope_theta: float = 0.0  # 0: rope_theta
    num_experts: int = 0  # 0: the ffn is dense
    experts_per_token: int = 0
    expert_size: int = 0  # inner size of one expert; 0: intermediate_size
    dense_layers: tuple[int, ...] = ()  # layers with a dense ffn where the others have experts
    renormalise: bool = True  # the weights of the chosen experts sum to 1
    head_filling: HeadFilling = ""
    router_scores: RouterScores = "softmax"
    balance_bias: bool = False  # a bias of each expert that changes which are chosen, and no weight
    shared_size: int = 0  # inner size of an expert that every token passes beside those that it chooses; 0: none

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads")
        _require_positive(self, "intermediate_size", "context")
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        heads, kv, experts, chosen = self.num_heads, self.num_kv_heads, self.num_experts, self.experts_per_token
        what = "query heads must divide evenly among key/value heads"
        _require(heads % kv == 0, what, "num_kv_heads", kv, f"a divisor of num_heads = {heads}")
        _require(self.head_dim % 2 == 0, "rotary positions need an even head_dim", "head_dim", self.head_dim)
        _require(self.family in TRAITS, "unknown", "family", self.family, " or ".join(TRAITS))
        for field, known in (
            ("activation", Activation),
            ("head_filling", HeadFilling),
            ("router_scores", RouterScores),
        ):
            value, words = getattr(self, field), get_args(known)
            _require(value in words, "unknown", field, value, " or ".join(word or "''" for word in words))
        for field in ("local_layers", "dense_layers"):
            layers, last = getattr(self, field), self.num_layers - 1
            _require(set(layers) <= {*range(last + 1)}, "not layers of this model", field, layers, f"0 to {last}")
        good = self.window >= 0 and (self.window > 0) == bool(self.local_layers)
        _require(good, "window and local_layers must be given together", "window", self.window, ">= 1")
        good = experts == chosen == 0 or 1 <= chosen <= experts
        what = "a token cannot choose so many experts"
        _require(good, what, "experts_per_token", chosen, f"1 to num_experts = {experts}")
        routed = self.router_scores != "softmax" or self.balance_bias
        _require(experts > 0 or not routed, "a dense model has no router", "num_experts", experts, ">= 1")
        _require(not (experts and self.mlp_bias), "experts have no biases", "mlp_bias", self.mlp_bias, "False")
        good, what = self.shared_size == 0 or self.shared_size > 0 < experts, "only sparse layers share an expert"
        _require(good, what, "shared_size", self.shared_size, "0")

    @property
    def query_width(self) -> int:
        """Width of all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.num_kv_heads * self.head_dim

    @property
    def cached_width(self) -> int:
        """Width of the keys and values that one layer caches for a token."""
        return 2 * self.key_width

    @property
    def rotary_width(self) -> int:
        """Width of the tables of rotary positions: cosine and sine, of global and of local layers."""
        return 2 * (2 if self.local_rope_theta else 1) * self.head_dim

    @property
    def ffn_width(self) -> int:
        """Inner width of the feed-forward layers that one token passes in a block."""
        dense = self.intermediate_size
        return self.experts_per_token * (self.expert_size or dense) + self.shared_size if self.num_experts else dense

    @property
    def wiring(self) -> dict[str, Any]:
        """All fields as plain data, for fingerprints. Fields that were added later count only where they differ from
        their defaults, so that older models keep their fingerprints.
        """
        later = {field.name: field.default for field in fields(self) if field.name not in FIRST_FIELDS}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


FIRST_FIELDS = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "context"),
    *("head_dim", "rope_theta", "norm_eps", "tie_embeddings"),
)
"""The fields that every fingerprint covers."""

TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3_text": {
        **{"activation": "gelu_tanh", "qk_norm": True, "norm_offset": 1.0},
        **{"sandwich_norms": True, "scaled_embedding": True},
    },
    "mixtral": {},
    "qwen2_moe": {"qkv_bias": True},
    "qwen3_moe": {"qk_norm": True},
    "moesaic": {},  # what no other family can say
}
"""Family (`model_type`) -> the wiring that all its models share."""


_SHORT = {
    **{"vocab": "vocab_size", "hidden": "hidden_size", "layers": "num_layers", "heads": "num_heads"},
    **{"kv": "num_kv_heads", "ffn": "intermediate_size", "context": "context"},
}


def _sizes(**short: int) -> dict[str, Any]:
    return {_SHORT[name]: size for name, size in short.items()}


SIZES = {
    "nano": _sizes(hidden=32, layers=2, heads=4, kv=2, ffn=64, context=128),
    "narrow": _sizes(hidden=48, layers=2, heads=4, kv=4, ffn=160, context=256),
    "micro": _sizes(hidden=96, layers=3, heads=6, kv=2, ffn=256, context=256),
    "tiny": _sizes(hidden=192, layers=4, heads=6, kv=2, ffn=640, context=512),
    "small": _sizes(hidden=384, layers=8, heads=6, kv=2, ffn=1024, context=1024),
    **{
        f"wide-{layers}": _sizes(hidden=1024, layers=layers, heads=8, kv=8, ffn=2752, context=512)
        | {"tie_embeddings": False}
        for layers in range(5, 9)
    },
}
"""Sizes for pretraining. `wide-L`: the size in which dense layers were compared with layers that mix their heads, at 5
to 8 layers; with 32,000 tokens, 129 to 167 million parameters.
"""


def sized(name: str, vocab_size: int) -> DecoderConfig:
    return DecoderConfig(vocab_size=vocab_size, **SIZES[name])


def _gemma3(layers: int) -> dict[str, Any]:
    theta = {"rope_theta": 1e6, "local_rope_theta": 1e4}
    local = {"window": 512, "local_layers": tuple(layer for layer in range(layers) if (layer + 1) % 6)}
    return {"family": "gemma3_text", "norm_eps": 1e-6, "head_dim": 256, "query_scalar": 256} | theta | local


_LLAMA3 = {"rope_theta": 5e5, "tie_embeddings": False}
_LLAMA32 = {"rope_theta": 5e5, "rope_scaling": RopeScaling(kind="llama3", factor=32.0)}
_QWEN2 = {"family": "qwen2", "rope_theta": 1e6, "norm_eps": 1e-6}
_MISTRAL = {"family": "mistral", "tie_embeddings": False, "window": 4096, "local_layers": tuple(range(32))}
_MIXTRAL = {"family": "mixtral", "tie_embeddings": False, "rope_theta": 1e6, "num_experts": 8, "experts_per_token": 2}

PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _LLAMA32 | _sizes(vocab=128256, hidden=2048, layers=16, heads=32, kv=8, ffn=8192, context=131072),
    "llama-3.2-3b": _LLAMA32 | _sizes(vocab=128256, hidden=3072, layers=28, heads=24, kv=8, ffn=8192, context=131072),
    "llama-3-8b": _LLAMA3 | _sizes(vocab=128256, hidden=4096, layers=32, heads=32, kv=8, ffn=14336, context=8192),
    "llama-3-70b": _LLAMA3 | _sizes(vocab=128256, hidden=8192, layers=80, heads=64, kv=8, ffn=28672, context=8192),
    "qwen2-0.5b": _QWEN2 | _sizes(vocab=151936, hidden=896, layers=24, heads=14, kv=2, ffn=4864, context=131072),
    "gemma-3-270m": _gemma3(18) | _sizes(vocab=262144, hidden=640, layers=18, heads=4, kv=1, ffn=2048, context=32768),
    "gemma-3-1b": _gemma3(26) | _sizes(vocab=262144, hidden=1152, layers=26, heads=4, kv=1, ffn=6912, context=32768),
    "mistral-7b": _MISTRAL | _sizes(vocab=32000, hidden=4096, layers=32, heads=32, kv=8, ffn=14336, context=32768),
    "mixtral-8x7b": _MIXTRAL | _sizes(vocab=32000, hidden=4096, layers=32, heads=32, kv=8, ffn=14336, context=32768),
}
"""Published decoder -> the fields of its configuration, without the wiring of its family."""


def published(name: str) -> DecoderConfig:
    own = PUBLISHED[name]
    return DecoderConfig(**TRAITS[own.get("family", "llama")], **own)


FEATURES = (
    *("text", "characters", "wording", "embedding_mean", "hidden_mean", "hidden_last", "hidden@K", "hidden@K_last"),
    *("embedding_tokens", "hidden_tokens", "hidden@K_tokens"),
)
COUNTS = ("characters", "wording")
"""Features that count what stands in a text; their numbers share one scale."""


POOLS: dict[str | None, Literal["last", "none"]] = {"_last": "last", "_tokens": "none"}
"""Ending of a feature's name -> pooling of its states; any other ending means their mean."""


@dataclass(frozen=True)
class Feature:
    """The input of a router: the text, counts of its characters or of these and its last words, or the base's
    pooled states of the prompt after `depth` blocks.

    `depth` 0 is the embedding, None the state after all blocks and the final norm; `pool` "none" keeps every token's.
    `PROJECTIONS` and `SHARES` have no names in recipes: routers made from the experts' weights read the first, and the
    shares of a prompt's tokens that the layers of a mixture give each expert are the second.
    """

    source: Literal["text", "characters", "wording", "state", "projection", "shares"]
    depth: int | None
    pool: Literal["mean", "last", "none"]

    @property
    def reads_base(self) -> bool:
        return self.source in ("state", "projection", "shares")

    @staticmethod
    def parse(kind: str) -> "Feature":
        """The feature with this name in recipes; RecipeError for an unknown name."""
        if kind in ("text", *COUNTS):
            return Feature(kind, 0, "mean")  # type: ignore[arg-type]
        if match := re.fullmatch(r"embedding_(mean|tokens)", kind):
            return Feature("state", 0, "mean" if match[1] == "mean" else "none")
        if match := re.fullmatch(r"hidden(?:@([1-9]\d*))?(_mean|_last|_tokens)?", kind):
            depth, pool = match.groups()
            if (depth is None) != (pool is None) or pool in ("_last", "_tokens"):
                return Feature("state", int(depth) if depth else None, POOLS.get(pool, "mean"))
        raise RecipeError("unknown feature", field="feature", expected=f"one of {', '.join(FEATURES)}", got=kind)


PROJECTIONS = Feature("projection", None, "mean")
SHARES = Feature("shares", None, "mean")

SelectionKind = Literal["soft", "top_k", "top_1"]
"""Which experts answer: all, weighted by probability; the k most probable; or the most probable."""

Head = Literal["none", "pooler", "mlm", "classification"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The size and wiring of an encoder, a BERT or a RoBERTa, and its head."""

    decodes: ClassVar[bool] = False  # the model predicts no next token
    ffn_states: ClassVar[int] = 2  # inner states of a feed-forward block: input and output of its activation
    cached_width: ClassVar[int] = 0  # an encoder reads a text at once: it has no cache
    rotary_width: ClassVar[int] = 0  # positions are embeddings, not rotations

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    context: int  # most tokens of a text, special tokens included
    family: str = "bert"  # the format of its files: see ENCODER_TRAITS
    token_types: int = 2
    norm_eps: float = 1e-12
    pad: int = 0
    positions_skip_padding: bool = False  # positions count the tokens other than `pad`, from pad + 1 on
    head: Head = "none"
    labels: tuple[str, ...] = ()  # of the classification head, in the order of its logits

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "hidden_size", "num_layers", "num_heads")
        _require_positive(self, "intermediate_size", "context", "token_types")
        hidden, heads, last = self.hidden_size, self.num_heads, self.vocab_size - 1
        what = "the heads must divide the hidden size evenly"
        _require(hidden % heads == 0, what, "num_heads", heads, f"a divisor of hidden_size = {hidden}")
        _require(self.family in ENCODER_TRAITS, "unknown", "family", self.family, " or ".join(ENCODER_TRAITS))
        _require(0 <= self.pad <= last, "no such token", "pad", self.pad, f"0 to {last}")
        good = (self.head == "classification") == bool(self.labels)
        _require(good, "labels and a classification head must be given together", "labels", self.labels)

    @property
    def num_positions(self) -> int:
        return self.context + (self.pad + 1 if self.positions_skip_padding else 0)

    @property
    def query_width(self) -> int:
        return self.hidden_size

    @property
    def key_width(self) -> int:
        return self.hidden_size

    @property
    def ffn_width(self) -> int:
        return self.intermediate_size

    @property
    def label_head(self) -> LabelHead:
        return LABEL_HEADS[self.family]


LABEL_HEADS = {
    "bert": LabelHead("bert", "first", dense=False, bias=True),  # the layer before the logits is BERT's pooler
    "roberta": LabelHead("roberta", "first", dense=True, bias=True),
}
"""Family of encoders -> the head that predicts a label."""

ENCODER_TRAITS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"token_types": 1, "norm_eps": 1e-5, "pad": 1, "positions_skip_padding": True},
}
"""Family (`model_type`) -> the default wiring of its models."""

ENCODERS: dict[str, dict[str, Any]] = {
    "bert-base": _sizes(vocab=30522, hidden=768, layers=12, heads=12, ffn=3072, context=512),
    "roberta-base": {"family": "roberta"} | _sizes(vocab=50265, hidden=768, layers=12, heads=12, ffn=3072, context=512),
    "minilm-l6": _sizes(vocab=30522, hidden=384, layers=6, heads=12, ffn=1536, context=512),
}
"""Published encoder -> the fields of its configuration, without the wiring of its family."""


def published_encoder(name: str, head: Head = "none", labels: tuple[str, ...] = ()) -> EncoderConfig:
    own = ENCODERS[name]
    return EncoderConfig(head=head, labels=labels, **ENCODER_TRAITS[own.get("family", "bert")], **own)
