"""A full fine-tune as a feed-forward expert: its blocks, the report of all else, and what is refused."""

import pytest
import torch

from moesaic.adapters.feedforward import attach
from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import CompatibilityError
from moesaic.files import MANIFEST
from moesaic.kinds.extraction import extract
from moesaic.routing import Gates
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the sum of two and two is four"], 265)


@pytest.fixture
def base(tokenizer, tmp_path):
    (tmp_path / "base").mkdir()
    save_base(tmp_path / "base", decoder(tokenizer), tokenizer, {})
    return load_base(tmp_path / "base")


def decoder(tokenizer, **changes):
    return tiny_decoder(0, torch.float32, vocab_size=tokenizer.vocab_size, **changes)


def tuned(tokenizer, tmp_path, *moved, **changes):
    """A folder of the base with some parameters moved, each by a tenth of its norm."""
    model = decoder(tokenizer, **changes)
    with torch.no_grad():
        for name in moved:
            weight = model.get_parameter(name)
            step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            weight.add_(step * (0.1 * weight.norm() / step.norm()))
    (tmp_path / "tuned").mkdir()
    save_base(tmp_path / "tuned", model, tokenizer, {})
    return model, tmp_path / "tuned"


BLOCKS = ("layers.0.mlp.up_proj.weight", "layers.2.mlp.down_proj.weight")


def test_the_blocks_of_a_fine_tune_over_the_base_are_the_fine_tune(tokenizer, base, tmp_path):
    model, folder = tuned(tokenizer, tmp_path, *BLOCKS)
    (folder / MANIFEST).unlink()
    found = extract(base, folder)
    found.require_nothing_else(folder)
    ffn = found.ffn
    assert ffn.layers == [0, 2], "blocks that did not change are left out"
    attach(base.decoder, [ffn])
    ids = torch.randint(200, (2, 6))
    with torch.no_grad():
        expected = model(ids).logits
        found = base.decoder(ids, None, Gates.one(0, 2, 1, expected)).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_differs_elsewhere_is_told_tensor_by_tensor_and_refused(tokenizer, base, tmp_path):
    others = (
        "norm.weight",
        "layers.1.self_attn.q_proj.weight",
        "embed_tokens.weight",
        "layers.0.input_layernorm.weight",
    )
    _, folder = tuned(tokenizer, tmp_path, *BLOCKS, *others)
    found = extract(base, folder)
    assert found.outside == {f"model.{name}": pytest.approx(0.1, rel=1e-3) for name in others}
    with pytest.raises(CompatibilityError, match=r"outside .* in 4 tensors: .* by 10\.00%.* and 1 more"):
        found.require_nothing_else(folder)
    assert found.ffn.blocks.keys() == {"layers.0.mlp", "layers.2.mlp"}


def test_a_model_whose_blocks_are_the_bases_is_refused(tokenizer, base, tmp_path):
    with pytest.raises(CompatibilityError, match="no feed-forward block differs from the base: the same weights"):
        extract(base, tmp_path / "base")
    _, folder = tuned(tokenizer, tmp_path, "norm.weight")
    with pytest.raises(CompatibilityError, match=r"no feed-forward block .* changes in model\.norm\.weight by 10"):
        extract(base, folder)


def test_a_model_of_another_shape_or_tokenizer_is_refused(tokenizer, base, tmp_path):
    _, folder = tuned(tokenizer, tmp_path, intermediate_size=40)
    with pytest.raises(CompatibilityError, match=r"intermediate_size: .* its shape differs; expected 48; got 40"):
        extract(base, folder)
    other = Tokenizer.train(["a cat sat on the mat"], 265)
    (tmp_path / "other").mkdir()
    save_base(tmp_path / "other", decoder(tokenizer), other, {})
    with pytest.raises(CompatibilityError, match="the model's tokenizer differs from the base's"):
        extract(base, tmp_path / "other")


def test_a_sparse_model_is_refused_by_name(tokenizer, tmp_path):
    sparse = decoder(tokenizer, num_experts=2, experts_per_token=1)
    (tmp_path / "sparse").mkdir()
    object.__setattr__(sparse.config, "family", "mixtral")
    save_base(tmp_path / "sparse", sparse, tokenizer, {})
    with pytest.raises(CompatibilityError, match=r"layers\.0\.mlp: .* block is sparse"):
        extract(load_base(tmp_path / "sparse"), tmp_path / "sparse")
