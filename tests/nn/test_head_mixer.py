"""Does the head mixer act on every head by itself, begin as the identity where it should, and cache nothing?"""

import pytest
import torch
from torch.nn import functional as F

from moesaic.model.decoder import Decoder, initialise
from moesaic.nn import Cache
from moesaic.nn.head_mixer import HeadMixer
from moesaic.testing import tiny_config, tiny_decoder

pytestmark = pytest.mark.usefixtures("double")
IDS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("residual", [False, True])
def test_the_head_mixer_equals_a_loop_over_heads(residual: bool) -> None:
    mixer, h = HeadMixer(tiny_config(), residual), torch.randn(2, 3, 4, 8)
    for weight in mixer.parameters():
        weight.normal_()
    found = mixer(h, torch.randn(2, 3, 32), None)
    for head in range(4):
        mixed = F.silu(h[:, :, head] @ mixer.head_mix.weight.T + mixer.head_mix.bias)
        torch.testing.assert_close(found[:, :, head], h[:, :, head] * residual + mixed)


@torch.no_grad()
@pytest.mark.parametrize("filling", ["mixer", "residual_mixer", "gate"])
@pytest.mark.parametrize("sandwich", [False, True])
def test_every_filling_gives_the_same_through_the_cache(filling: str, sandwich: bool) -> None:
    decoder = tiny_decoder(head_filling=filling, sandwich_norms=sandwich)
    for layer in decoder.layers:
        for weight in layer.self_attn.between.parameters():
            weight.normal_(0, 0.5)
    whole, cache, at = decoder(IDS).logits, Cache.empty(decoder.config, 2, 12, like=decoder.norm.weight), 0
    assert not whole.allclose(tiny_decoder(sandwich_norms=sandwich)(IDS).logits)
    for size in (4, 1, 3, 1):
        torch.testing.assert_close(decoder(IDS[:, at : at + size], cache).logits, whole[:, at : at + size])
        cache, at = cache.advance(size), at + size


@torch.no_grad()
def test_the_residual_form_begins_as_the_dense_decoder_and_learns() -> None:
    mixed = initialise(Decoder(tiny_config(head_filling="residual_mixer")), torch.Generator().manual_seed(3))
    dense = Decoder(tiny_config())
    dense.load_state_dict({name: value for name, value in mixed.state_dict().items() if "head_mix" not in name})
    assert mixed(IDS).logits.equal(dense(IDS).logits)
    with torch.enable_grad():
        mixed(IDS).logits.square().sum().backward()
    assert all(layer.self_attn.between.head_mix.weight.grad.abs().sum() > 0 for layer in mixed.layers)


@torch.no_grad()
def test_the_mixer_begins_with_the_scale_of_its_heads() -> None:
    """With the deviation of other matrices, 0.02, small heads would begin at almost nothing."""
    decoder = initialise(Decoder(tiny_config(head_filling="mixer", head_dim=64)), torch.Generator().manual_seed(3))
    weight = decoder.layers[0].self_attn.between.head_mix.weight
    assert (torch.randn(100, 64) @ weight.T).std().item() == pytest.approx(1, abs=0.1)
