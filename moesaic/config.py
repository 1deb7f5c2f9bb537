"""How big a model is and how it is wired: one frozen dataclass, and the named sizes as data.

Knows nothing about torch, files or other people's config keys (`weights/` translates those).
"""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from moesaic.errors import RecipeError

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary positions reach beyond the context they were trained for: slower turns, by `factor`.

    `linear` slows all frequencies; `llama3` the low ones, those that turn fewer than `low_freq_factor` times in the
    `original_context`, leaves those of more than `high_freq_factor` turns, and blends between.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_context < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise RecipeError(
                "rotary positions cannot be scaled so",
                field="rope_scaling",
                expected="factor >= 1, 0 < low_freq_factor < high_freq_factor",
                got=str(asdict(self)),
            )


Pool = Literal["first", "mean", "last"]
"""Makes one state of a row: of its first token, of its last, or the mean over its tokens."""


@dataclass(frozen=True)
class LabelHead:
    """The head that transformers' models for sequence classification give a base.

    `family`: the bases whose heads are alike. `pool`: the state that it reads. `dense`: x -> tanh(W x + b) comes before
    the logits where it reads the first token. `bias`: its logits have one.
    """

    family: str
    pool: Pool
    dense: bool
    bias: bool


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The size and wiring of a decoder. Every family is this with other values; nothing computes by its name."""

    decodes: ClassVar[bool] = True
    """Whether the model predicts the next token."""

    ffn_states: ClassVar[int] = 4
    """Inner states of a feed-forward block: gate, up, its activation and their product."""
    pad: ClassVar[int] = 0
    """The token that fills the shorter rows of a batch: any, as no token sees what stands behind it."""
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
    family: str = "llama"  # whose files it came from and goes to: see TRAITS
    rope_scaling: RopeScaling | None = None
    activation: Activation = "silu"
    qkv_bias: bool = False
    attention_bias: bool = False  # of queries, keys and values, and behind them
    mlp_bias: bool = False
    qk_norm: bool = False  # queries and keys are normalised, each head by itself, before they are turned
    query_scalar: int = 0  # scores are divided by its root; 0: head_dim
    norm_offset: float = 0.0  # added to the weights of every norm
    sandwich_norms: bool = False  # a norm behind attention and ffn too
    scaled_embedding: bool = False  # embeddings times the root of hidden_size
    window: int = 0  # how many tokens, itself included, a token sees in the local layers
    local_layers: tuple[int, ...] = ()
    local_rope_theta: float = 0.0  # 0: local layers turn as the others do
    num_experts: int = 0  # 0: the ffn is dense
    experts_per_token: int = 0
    expert_size: int = 0  # inner size of one expert; 0: intermediate_size
    dense_layers: tuple[int, ...] = ()  # whose ffn is dense all the same
    renormalise: bool = True  # the weights of the chosen experts sum to 1

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "context")
        for field in sizes:
            if getattr(self, field) < 1:
                raise RecipeError(
                    "a model size must be positive", field=field, expected=">= 1", got=getattr(self, field)
                )
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise RecipeError(
                "query heads must divide evenly among key/value heads",
                field="num_kv_heads",
                expected=f"a divisor of num_heads = {self.num_heads}",
                got=self.num_kv_heads,
            )
        if self.head_dim % 2:
            raise RecipeError("rotary positions need an even head_dim", field="head_dim", got=self.head_dim)
        for field, known in (("family", tuple(TRAITS)), ("activation", get_args(Activation))):
            if getattr(self, field) not in known:
                raise RecipeError("unknown", field=field, expected=" or ".join(known), got=getattr(self, field))
        for field in ("local_layers", "dense_layers"):
            if not set(getattr(self, field)) <= set(range(self.num_layers)):
                raise RecipeError(
                    "not layers of this model",
                    field=field,
                    expected=f"0 to {self.num_layers - 1}",
                    got=getattr(self, field),
                )
        if self.window < 0 or (self.window > 0) != bool(self.local_layers):
            raise RecipeError(
                "a window and the layers that have it go together", field="window", expected=">= 1", got=self.window
            )
        if not (self.num_experts == self.experts_per_token == 0 or 1 <= self.experts_per_token <= self.num_experts):
            raise RecipeError(
                "as many experts as there are, or fewer, are chosen",
                field="experts_per_token",
                expected=f"1 to num_experts = {self.num_experts}",
                got=self.experts_per_token,
            )

    @property
    def query_width(self) -> int:
        """The width of all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """The width of all keys of a token, which is that of its values."""
        return self.num_kv_heads * self.head_dim

    @property
    def cached_width(self) -> int:
        """The width of what one layer caches of a token."""
        return 2 * self.key_width

    @property
    def rotary_width(self) -> int:
        """The width of the tables of rotary positions, cosine and sine, of global layers and of local ones."""
        return 2 * (2 if self.local_rope_theta else 1) * self.head_dim

    @property
    def ffn_width(self) -> int:
        """The inner width of what one token passes through in a block."""
        dense = self.intermediate_size
        return self.experts_per_token * (self.expert_size or dense) if self.num_experts else dense

    @property
    def wiring(self) -> dict[str, Any]:
        """All fields as plain data, for fingerprints: those that came later only where they have a say.

        So a model keeps the fingerprint that it had before they came.
        """
        later = {field.name: field.default for field in fields(self) if field.name not in FIRST_FIELDS}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


FIRST_FIELDS = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "context"),
    *("head_dim", "rope_theta", "norm_eps", "tie_embeddings"),
)
"""What a fingerprint has always covered."""

TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3_text": {
        "activation": "gelu_tanh",
        "qk_norm": True,
        "norm_offset": 1.0,
        "sandwich_norms": True,
        "scaled_embedding": True,
    },
    "mixtral": {},
    "qwen3_moe": {"qk_norm": True},
}
"""Family, as `model_type` names it -> the wiring that all its models have."""


SHORT = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_layers",
    "heads": "num_heads",
    "kv": "num_kv_heads",
    "ffn": "intermediate_size",
    "context": "context",
}
"""Short names of sizes in the tables below -> the fields of a configuration."""


def _sizes(**short: int) -> dict[str, Any]:
    return {SHORT[name]: size for name, size in short.items()}


SIZES = {
    "nano": _sizes(hidden=32, layers=2, heads=4, kv=2, ffn=64, context=128),
    "micro": _sizes(hidden=96, layers=3, heads=6, kv=2, ffn=256, context=256),
    "tiny": _sizes(hidden=192, layers=4, heads=6, kv=2, ffn=640, context=512),
    "small": _sizes(hidden=384, layers=8, heads=6, kv=2, ffn=1024, context=1024),
}
"""Shapes to pretrain from nothing."""


def sized(name: str, vocab_size: int) -> DecoderConfig:
    """The configuration of a named size with a vocabulary of `vocab_size` tokens."""
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
"""Models that people have -> the fields of their configurations, but for the wiring of the whole family."""


def published(name: str) -> DecoderConfig:
    """The configuration of a published model, by name."""
    own = PUBLISHED[name]
    return DecoderConfig(**TRAITS[own.get("family", "llama")], **own)


FEATURES = (
    *("text", "characters", "embedding_mean", "hidden_mean", "hidden_last", "hidden@K", "hidden@K_last"),
    *("embedding_tokens", "hidden_tokens", "hidden@K_tokens"),
)


POOLS: dict[str | None, Literal["last", "none"]] = {"_last": "last", "_tokens": "none"}
"""How a feature's name ends -> how states become one; the mean where it ends otherwise."""


@dataclass(frozen=True)
class Feature:
    """What a router reads: the text, its characters, or the base's states after `depth` blocks, pooled over the prompt.

    `depth` 0 is the embedding, None the state after all blocks and the final norm; `pool` none leaves every token's.
    `PROJECTIONS` is no word of a recipe: a router reads it that is made from the experts' weights.
    """

    source: Literal["text", "characters", "state", "projection"]
    depth: int | None
    pool: Literal["mean", "last", "none"]

    @property
    def reads_base(self) -> bool:
        """Whether the base must be in memory to read it."""
        return self.source in ("state", "projection")

    @staticmethod
    def parse(kind: str) -> "Feature":
        """The feature of this name, as recipes write it; RecipeError where there is none."""
        if kind == "text":
            return Feature("text", 0, "mean")
        if kind == "characters":
            return Feature("characters", 0, "mean")
        if match := re.fullmatch(r"embedding_(mean|tokens)", kind):
            return Feature("state", 0, "mean" if match[1] == "mean" else "none")
        if match := re.fullmatch(r"hidden(?:@([1-9]\d*))?(_mean|_last|_tokens)?", kind):
            depth, pool = match.groups()
            if (depth is None) != (pool is None) or pool in ("_last", "_tokens"):
                return Feature("state", int(depth) if depth else None, POOLS.get(pool, "mean"))
        raise RecipeError("unknown feature", field="feature", expected=f"one of {', '.join(FEATURES)}", got=kind)


PROJECTIONS = Feature("projection", None, "mean")

SelectionKind = Literal["soft", "top_k", "top_1"]
"""How many experts answer: all, by probability; the k most probable; or the most probable."""


Head = Literal["none", "pooler", "mlm", "classification"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The size and wiring of an encoder, a BERT or a RoBERTa, and which head it has."""

    decodes: ClassVar[bool] = False
    """Whether the model predicts the next token."""

    ffn_states: ClassVar[int] = 2
    """Inner states of a feed-forward block: what goes into its activation, and what comes out."""
    cached_width: ClassVar[int] = 0
    """An encoder reads a text at once: it has no cache."""
    rotary_width: ClassVar[int] = 0
    """Its positions are embeddings, not rotations."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    context: int  # tokens of a text at most, those that begin and end it included
    family: str = "bert"  # whose files it came from and goes to: see ENCODER_TRAITS
    token_types: int = 2
    norm_eps: float = 1e-12
    pad: int = 0
    positions_skip_padding: bool = False  # they count the tokens that are not `pad`, from pad + 1 on
    head: Head = "none"
    labels: tuple[str, ...] = ()  # of the classification head, in the order of its logits

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "context", "token_types")
        for field in sizes:
            if getattr(self, field) < 1:
                raise RecipeError(
                    "a model size must be positive", field=field, expected=">= 1", got=getattr(self, field)
                )
        if self.hidden_size % self.num_heads:
            expected = f"a divisor of hidden_size = {self.hidden_size}"
            raise RecipeError(
                "heads share the hidden size evenly", field="num_heads", expected=expected, got=self.num_heads
            )
        if self.family not in ENCODER_TRAITS:
            raise RecipeError("unknown", field="family", expected=" or ".join(ENCODER_TRAITS), got=self.family)
        if not 0 <= self.pad < self.vocab_size:
            raise RecipeError("no such token", field="pad", expected=f"0 to {self.vocab_size - 1}", got=self.pad)
        if (self.head == "classification") != bool(self.labels):
            raise RecipeError("labels and the classification head go together", field="labels", got=self.labels)

    @property
    def num_positions(self) -> int:
        """Rows of the table of positions."""
        return self.context + (self.pad + 1 if self.positions_skip_padding else 0)

    @property
    def query_width(self) -> int:
        """The width of all queries of a token."""
        return self.hidden_size

    @property
    def key_width(self) -> int:
        """The width of all keys of a token, which is that of its values."""
        return self.hidden_size

    @property
    def ffn_width(self) -> int:
        """The inner width of what one token passes through in a block."""
        return self.intermediate_size

    @property
    def label_head(self) -> LabelHead:
        return LABEL_HEADS[self.family]


LABEL_HEADS = {
    "bert": LabelHead("bert", "first", dense=False, bias=True),  # the layer before the logits is BERT's pooler
    "roberta": LabelHead("roberta", "first", dense=True, bias=True),
}
"""Family of encoders -> the head that reads a label."""

ENCODER_TRAITS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"token_types": 1, "norm_eps": 1e-5, "pad": 1, "positions_skip_padding": True},
}
"""Family, as `model_type` names it -> the wiring that its models have where they say nothing else."""

ENCODERS: dict[str, dict[str, Any]] = {
    "bert-base": _sizes(vocab=30522, hidden=768, layers=12, heads=12, ffn=3072, context=512),
    "roberta-base": {"family": "roberta"} | _sizes(vocab=50265, hidden=768, layers=12, heads=12, ffn=3072, context=512),
    "minilm-l6": _sizes(vocab=30522, hidden=384, layers=6, heads=12, ffn=1536, context=512),
}
"""Encoders that people have -> the fields of their configurations, but for the wiring of the whole family."""


def published_encoder(name: str, head: Head = "none", labels: tuple[str, ...] = ()) -> EncoderConfig:
    """The configuration of a published encoder, by name, with a head."""
    own = ENCODERS[name]
    return EncoderConfig(head=head, labels=labels, **ENCODER_TRAITS[own.get("family", "bert")], **own)
