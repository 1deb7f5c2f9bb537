"""Do prototypes point where an expert acts most, and does the router listen to nothing else?"""

import pytest
import torch

from moesaic.adapters import LoRA
from moesaic.model.features import Prompts, project
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.train.arrow import direction, fit_arrow, overlaps, written


@pytest.fixture
def decoder():
    return tiny_decoder(3, torch.float32)


def prompts(*rows: list[int]) -> Prompts:
    return Prompts.pad(list(rows), [""] * len(rows))


def test_a_direction_is_the_first_right_singular_vector_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 20, generator=generator), torch.randn(3, 11, generator=generator)
    expected = torch.linalg.svd(b.t() @ a)[2][0]
    assert (direction(a, b) @ expected).abs() == pytest.approx(1, abs=1e-5)
    assert (direction(7 * a, b) @ expected).abs() == pytest.approx(1, abs=1e-5), "whatever its size"


@torch.no_grad()
def test_an_expert_that_looks_along_a_text_is_chosen_for_it(decoder):
    """Two experts at one linear: each reads along what the linear is given in one of two texts."""
    texts = [[5, 5, 5, 5], [9, 9, 9, 9]]
    given = decoder.layers[0].input_layernorm(decoder.embed_tokens(torch.tensor(texts)[:, 0]))
    path = "layers.0.self_attn.q_proj"
    experts = [LoRA(1, size, {path: (x[None], torch.ones(1, 32))}) for x, size in zip(given, (1.0, 50.0), strict=True)]
    router = fit_arrow(decoder, experts, (), 0, 0)
    features = project(decoder, 1, prompts(*texts), router.prototypes)
    assert router(features).argmax(-1).tolist() == [0, 1], "however large the other is"


@torch.no_grad()
def test_on_texts_of_the_base_no_expert_is_ahead(decoder):
    experts = [toy_expert(decoder, 1), toy_expert(decoder, 2, rank=7, targets=["q_proj"]), toy_expert(decoder, 3)]
    router = fit_arrow(decoder, experts, (4,), 0, 0)
    logits = router(project(decoder, 1, written(decoder, (4,), 0, 0), router.prototypes))
    torch.testing.assert_close(logits.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits.std(0), torch.ones(3), atol=1e-3, rtol=0)
    assert router.adapts.sum(0).tolist() == [21, 3, 21]


def test_the_base_writes_the_same_texts_for_the_same_seed_and_begins_as_it_does(decoder):
    one, again, other = (written(decoder, (4, 2), 0, seed) for seed in (0, 0, 1))
    assert one.ids.equal(again.ids) and not one.ids.equal(other.ids)
    assert (one.ids[:, :2] == torch.tensor([4, 2])).all() and one.ids.shape == (64, 34)
    without = written(decoder, (), 7, 0)
    assert without.ids.shape == (64, 32) and len(without.ids[:, 0].unique()) > 1, "begun after an end that is not kept"


def test_overlap_is_1_for_an_expert_and_itself_and_little_for_strangers(decoder):
    experts = [toy_expert(decoder, 1), toy_expert(decoder, 2), toy_expert(decoder, 1)]
    found = overlaps(fit_arrow(decoder, experts, (), 0, 0))
    assert found[0, 2] == pytest.approx(1, abs=1e-4) and found[0, 1] < 0.4
