"""Does each token get the experts that its layer's gate chooses, and a whole row the expert that it names?"""

import pytest
import torch
from torch import Tensor

from moesaic.adapters import feedforward, token_ffn
from moesaic.adapters.feedforward import FFN
from moesaic.adapters.token_ffn import TokenFFN
from moesaic.errors import CompatibilityError
from moesaic.model.decoder import Decoder
from moesaic.ops import glu
from moesaic.routing import Gates
from moesaic.testing import tiny_decoder, toy_ffn

pytestmark = pytest.mark.usefixtures("double")


def ids(rows: int = 3, tokens: int = 7) -> Tensor:
    return torch.randint(61, (rows, tokens), generator=torch.Generator().manual_seed(1))


def experts() -> list[FFN]:
    """The second has no block in the first layer."""
    plain = tiny_decoder()
    return [toy_ffn(plain, 1), toy_ffn(plain, 2, range(1, 3)), toy_ffn(plain, 3)]


def rows(count: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{layer}.mlp": torch.randn(count, 32, generator=generator) for layer in range(3)}


def routed(some: list[FFN], chosen: int = 2, **how) -> Decoder:
    decoder = tiny_decoder()
    token_ffn.attach(decoder, decoder.config, some, how.pop("rows", None) or rows(len(some)), chosen, **how)
    return decoder


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # routers compute in float32


def test_a_slot_is_the_weighted_sum_of_the_chosen_blocks_of_each_token():
    some, gates = experts(), rows()
    slot = routed(some).layers[0].mlp
    assert isinstance(slot, TokenFFN)
    x = torch.randn(2, 5, 32)
    y, routing = slot(x, None)
    own = feedforward.block_of(slot.base)
    for token, found, weights in zip(x.flatten(0, 1), y.flatten(0, 1), routing.weights, strict=True):
        shares = (gates["layers.0.mlp"] @ token).softmax(-1)
        values, chosen = shares.topk(2)
        expected = torch.zeros(32)
        for value, expert in zip(values / values.sum(), chosen.tolist(), strict=True):
            block = some[expert].blocks.get("layers.0.mlp") or own
            one = glu.block(token[None, None], *block, slot.base.act, torch.ones(1))[0, 0]
            expected += value * one
            assert weights[expert].item() == pytest.approx(value.item(), abs=1e-6)
        close(found, expected)
        assert (weights > 0).sum() == 2


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_identical_experts_are_the_dense_model(chosen):
    expert = experts()[0]
    dense = tiny_decoder()
    feedforward.attach(dense, [expert])
    one = dense(ids(), None, Gates.one(0, 3, 1, torch.zeros(1))).logits
    close(routed([expert] * 3, chosen)(ids()).logits, one)


@pytest.mark.parametrize("which", [0, 2])
def test_gates_that_send_every_token_to_one_expert_are_the_dense_model_of_that_expert(which):
    dense, some = tiny_decoder(), experts()
    feedforward.attach(dense, [some[which]])
    alone = dense(ids(), None, Gates.one(0, 3, 1, torch.zeros(1))).logits
    others = [index for index in range(3) if index != which]
    close(routed(some, 1, disabled=others)(ids()).logits, alone)
    close(routed(some, 2, disabled=others)(ids()).logits, alone)


def test_a_row_is_routed_or_given_to_an_expert_or_the_base_whatever_its_neighbours_are():
    some = experts()
    decoder, given = routed(some), tiny_decoder()
    feedforward.attach(given, some)
    free, text = decoder(ids(4)).logits, ids(4)
    weights = torch.tensor([[0, 0, 0, 1.0], [0, 1, 0, 0], [0, 0, 0, 0], [0.5, 0, 0.25, 0]])
    found = decoder(text, None, Gates.of(weights)).logits
    close(found[0], free[0])
    close(found[1:], given(text, None, Gates.of(weights[:, :3])).logits[1:])


def test_who_is_disabled_gets_no_token_and_the_others_all():
    decoder = routed(experts(), 2, disabled=[1])
    for routing in decoder(ids()).routings:
        assert (routing.weights[:, 1] == 0).all()
        close(routing.weights.sum(-1), torch.ones(21))


def test_the_experts_can_be_read_back_bit_by_bit():
    some = experts()
    decoder = routed(some)
    for index, expert in enumerate(some):
        again = token_ffn.attached(decoder, expert, index)
        assert again.blocks.keys() == expert.blocks.keys()
        for path, block in expert.blocks.items():
            assert all(map(torch.equal, again.blocks[path], block))
    assert token_ffn.attached(tiny_decoder(), some[0], 0) is None


def test_a_layer_without_a_gate_is_refused():
    with pytest.raises(CompatibilityError, match=r"layers.2.mlp: the router has no gate"):
        routed(experts(), rows={path: some for path, some in rows().items() if path != "layers.2.mlp"})
