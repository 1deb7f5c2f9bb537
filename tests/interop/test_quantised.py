"""Do matrices in 8 and 4 bits take the bytes that are counted, and train adapters beside them as their values would?"""

import pytest
import torch
from torch.nn import functional as F

from moesaic.adapters import attach
from moesaic.compose.dry_steps import Live
from moesaic.config import published
from moesaic.errors import CompatibilityError
from moesaic.interop.quantised import PackedLinear, pack_layers, packed_bytes, packing, unpacking_bytes
from moesaic.kinds.gates import alone
from moesaic.model.decoder import Decoder
from moesaic.nn import Linear
from moesaic.ops.losses import Targets
from moesaic.testing import tiny_decoder, tiny_encoder, toy_expert

IDS = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))


def matrix(shape: tuple[int, int] = (96, 128), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (4, 0.1)])
def test_a_packed_matrix_is_near_and_takes_the_bytes_that_are_counted(bits: int, error: float, dtype: torch.dtype):
    whole, form = matrix(dtype=dtype), packing(bits)
    packed = form.pack(whole)
    inner = [getattr(packed, name) for name in packed.__tensor_flatten__()[0]]
    assert sum(one.numel() * one.element_size() for one in inner) == packed_bytes((96, 128), bits, dtype.itemsize)
    with Live() as live:
        live.known = {one.untyped_storage()._cdata for one in inner}
        found = form.unpack(packed)
    assert found.dtype == dtype and (found - whole).norm() < error * whole.norm()
    assert live.most == pytest.approx(unpacking_bytes(whole.numel(), bits, dtype.itemsize), rel=0.05)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_and_its_gradient_are_those_of_the_values_and_keep_no_matrix(bits: int):
    linear = Linear(128, 96, bias=True)
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    packed, x = PackedLinear(linear, packing(bits)), torch.randn(2, 5, 128)
    both, kept = [], []
    for product in (lambda x: packed(x, None), lambda x: F.linear(x, packed.weight, packed.bias)):
        own = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
            y = product(own)
        y.square().sum().backward()
        both.append((y.detach(), own.grad))
        if len(both) == 1:
            assert 96 * 128 not in kept, "the unpacked matrix waits for no backward pass"
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)
    assert packed.weight.shape == (packed.out_features, packed.in_features) == (96, 128)


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_learns_beside_packed_layers_as_beside_their_values(bits: int):
    """The same losses and gradients as over a decoder with the unpacked values; the base is not trained."""
    both = []
    for whole in (False, True):
        decoder = tiny_decoder(dtype=torch.float32).requires_grad_(False)
        pack_layers(decoder, bits)
        if whole:
            unpacked = {path: one.weight for path, one in decoder.named_modules() if isinstance(one, PackedLinear)}
            decoder = tiny_decoder(dtype=torch.float32).requires_grad_(False)
            for path, weight in unpacked.items():
                decoder.get_submodule(path).weight.data = weight
        attach(decoder, [toy_expert(tiny_decoder(dtype=torch.float32), 1)])
        loss = decoder(IDS[:, :-1], None, alone(2), None, Targets.of(IDS[:, 1:])).nats
        loss.backward()
        grads = {name: one.grad for name, one in decoder.named_parameters() if one.grad is not None}
        both.append((loss.item(), grads))
    (loss, grads), (again, same) = both
    assert loss == pytest.approx(again, rel=1e-5)
    assert grads.keys() == same.keys() and all(name.endswith((".a", ".b")) for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, same[name], rtol=1e-4, atol=1e-4)


def test_embeddings_head_and_norms_keep_all_bits_and_encoders_are_packed_too():
    decoder, encoder = tiny_decoder(dtype=torch.float32), tiny_encoder(dtype=torch.float32)
    for body, each in ((decoder, 7), (encoder, 6)):
        pack_layers(body, 8)
        packed = [one for one in body.modules() if isinstance(one, PackedLinear)]
        assert len(packed) == each * len(body.layers)
    assert type(decoder.lm_head) is Linear and decoder.norm.weight.dtype == torch.float32
    assert sum(one.numel() for one in decoder.parameters()) == sum(one.numel() for one in tiny_decoder().parameters())


def test_a_matrix_that_4_bits_do_not_divide_is_named():
    with pytest.raises(CompatibilityError, match=r"layers\.0\.mlp\.gate_proj.*a multiple of 64 values.*got '?1056"):
        pack_layers(tiny_decoder(dtype=torch.float32, intermediate_size=33), 4)


def test_published_sizes_can_be_packed():
    with torch.device("meta"):
        decoder = Decoder(published("llama-3-8b"))
    linears = [one for one in decoder.layers.modules() if isinstance(one, Linear)]
    assert all(one.weight.numel() % 64 == 0 for one in linears)
    held = sum(packed_bytes(tuple(one.weight.shape), 4, 2) for one in linears)
    assert 3.5e9 < held < 3.7e9
