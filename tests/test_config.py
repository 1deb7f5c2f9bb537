"""Are sizes checked and derived, and is every feature that a recipe may name understood, and nothing else?"""

import dataclasses
from itertools import pairwise

import pytest

from moesaic.config import FEATURES, SIZES, DecoderConfig, Feature, sized
from moesaic.errors import RecipeError

PLAIN = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 48,
    "context": 64,
}


def test_the_size_of_a_head_is_derived_unless_stated():
    assert DecoderConfig(**PLAIN).head_dim == 8
    assert DecoderConfig(**PLAIN, head_dim=16).head_dim == 16
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecoderConfig(**PLAIN).head_dim = 4


@pytest.mark.parametrize("field", PLAIN)
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_that_is_not_positive_is_refused_by_its_field(field, value):
    with pytest.raises(RecipeError, match=rf"^{field}: .*expected >= 1; got {value}"):
        DecoderConfig(**{**PLAIN, field: value})


@pytest.mark.parametrize(
    ("change", "field"), [({"num_kv_heads": 3}, "num_kv_heads"), ({"num_kv_heads": 8}, "num_kv_heads")]
)
def test_heads_that_do_not_divide_are_refused(change, field):
    with pytest.raises(RecipeError, match=rf"^{field}: .*a divisor of num_heads = 4"):
        DecoderConfig(**{**PLAIN, **change})


@pytest.mark.parametrize("change", [{"hidden_size": 36}, {"head_dim": 7}])
def test_rotary_positions_need_an_even_head(change):
    with pytest.raises(RecipeError, match="^head_dim: "):
        DecoderConfig(**{**PLAIN, **change})


@pytest.mark.parametrize("name", SIZES)
def test_every_named_size_is_a_model(name):
    config = sized(name, 1000)
    assert config.vocab_size == 1000 and config.tie_embeddings != name.startswith("wide-")
    assert config.head_dim * config.num_heads == config.hidden_size
    assert {field: getattr(config, field) for field in SIZES[name]} == SIZES[name]


def test_named_sizes_grow():
    """Those of studies apart, `narrow` and `wide-L`: their heads share no keys."""
    sizes = [list(fields.values()) for name, fields in SIZES.items() if not name.startswith(("narrow", "wide-"))]
    assert all(all(a <= b for a, b in zip(one, two, strict=True)) for one, two in pairwise(sizes))


@pytest.mark.parametrize(
    ("kind", "source", "depth", "pool"),
    [
        ("text", "text", 0, "mean"),
        ("characters", "characters", 0, "mean"),
        ("embedding_mean", "state", 0, "mean"),
        ("hidden_mean", "state", None, "mean"),
        ("hidden_last", "state", None, "last"),
        ("hidden@1", "state", 1, "mean"),
        ("hidden@12", "state", 12, "mean"),
        ("hidden@3_last", "state", 3, "last"),
        ("embedding_tokens", "state", 0, "none"),
        ("hidden_tokens", "state", None, "none"),
        ("hidden@2_tokens", "state", 2, "none"),
    ],
)
def test_features_are_read(kind, source, depth, pool):
    assert Feature.parse(kind) == Feature(source, depth, pool)


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "hidden",
        "embedding",
        "tokens",
        "hidden@",
        "hidden@0",
        "hidden@01",
        "hidden@2_mean",
        "hidden_first",
        "Text",
        "hidden@K",
        "text ",
    ],
)
def test_what_is_no_feature_is_refused_with_those_there_are(kind):
    with pytest.raises(RecipeError, match=r"^feature: unknown feature; expected one of text, .*hidden@K_last"):
        Feature.parse(kind)


def test_every_feature_that_is_named_can_be_parsed():
    for kind in FEATURES:
        Feature.parse(kind.replace("K", "2"))
