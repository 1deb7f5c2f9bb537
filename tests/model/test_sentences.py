"""Is the vector of a text its own, whatever stands beside it, and made as its settings say?"""

import pytest
import torch

from moesaic.model.sentences import SentenceEncoder, SentenceRouter
from moesaic.routing.routers import MLPRouter
from moesaic.testing import FixedRouter, tiny_encoder

TEXTS = ["abc", "a", "", "abcdefghij"]
BEGIN, END = 58, 59


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def encode(text: str) -> list[int]:
    return [BEGIN, *(ord(c) - ord("a") + 2 for c in text), END]


def sentences(family: str = "bert", limit: int = 20, pool: str = "mean", normalise: bool = False) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder(family), encode, limit, pool, normalise)


@torch.no_grad()
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_vector_is_pooled_from_the_texts_own_tokens(family, pool, normalise):
    made = sentences(family, 20, pool, normalise)(TEXTS)
    encoder = tiny_encoder(family)
    for text, vector in zip(TEXTS, made, strict=True):
        states = encoder(torch.tensor([encode(text)])).hidden[0]
        expected = states[0] if pool == "cls" else sum(states) / len(states)
        expected = expected / expected.norm() if normalise else expected
        torch.testing.assert_close(vector, expected, rtol=1e-12, atol=1e-12)


def test_a_long_text_is_cut_before_the_token_that_ends_it_and_counted():
    made = sentences(limit=6)
    assert made.cut(encode("abcd")) == encode("abcd")
    assert made.cut(encode("abcdefghij")) == encode("abcd")
    assert made.truncated(["abcd", "abcde", "abcdefghij"]) == 2
    assert made(["abcd"]).allclose(made(["abcdefghij"]), rtol=1e-12)


@torch.no_grad()
def test_a_router_over_sentences_decides_from_their_vectors():
    torch.manual_seed(0)
    router, made = MLPRouter(32, 3, [5]).eval(), sentences()
    assert SentenceRouter(made, router)(TEXTS).equal(router(made(TEXTS)))
    assert SentenceRouter(made, FixedRouter([[1.0, 2.0]]))(["a"]).tolist() == [[1.0, 2.0]]


def test_the_encoder_of_a_router_is_counted_beside_what_decides():
    made = sentences()
    router = SentenceRouter(made, MLPRouter(32, 3, [5]))
    assert router.num_parameters == 32 * 5 + 5 + 5 * 3 + 3
    assert router.num_encoder_parameters == sum(weight.numel() for weight in made.parameters())
    assert router.router.num_encoder_parameters == SentenceRouter(made, FixedRouter([[1.0]])).num_parameters == 0
