"""Do adapters of sparse experts compute what merged matrices would, for any mix of adapters, and train alike?"""

import pytest
import torch

from moesaic.adapters import LoRA, attach, merge, sparse_experts
from moesaic.adapters.sparse_experts import LowRankExperts, matrices
from moesaic.errors import GatesError
from moesaic.model.decoder import Decoder
from moesaic.nn.sparse import Experts
from moesaic.ops import low_rank
from moesaic.routing import Gates
from moesaic.testing import ALL_TARGETS, tiny_decoder, toy_expert

pytestmark = pytest.mark.usefixtures("double")

IDS = torch.randint(61, (4, 6), generator=torch.Generator().manual_seed(1))
MIXED = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 0]]
ALONE = [[0.5, 0, 0], [0, 1.0, 0], [0, 0, 0.7], [0, 1.0, 0]]
SHARED = [[0.5, 0.3, 0.2], [0, 0.6, 0.1], [0, 0, 0], [0, 0, 1.0]]


def sparse() -> Decoder:
    return tiny_decoder(num_experts=3, experts_per_token=2, expert_size=20)


def experts() -> list[LoRA]:
    """Of other ranks and targets: gate and up as one matrix, one of them alone, and down with the router."""
    return [
        toy_expert(sparse(), 1, rank=3),
        toy_expert(sparse(), 2, rank=4, targets=["up_proj", "q_proj"], layers=range(1, 3)),
        toy_expert(sparse(), 3, rank=2, targets=["gate_proj", "down_proj", "gate"]),
    ]


def merged(weights: list[float], ids: torch.Tensor) -> torch.Tensor:
    decoder = sparse()
    merge(decoder, experts(), weights)
    return decoder(ids).logits


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 6], ids=["decoding", "reading"])
@pytest.mark.parametrize("few", [0, 99], ids=["groups", "gathered"])
@pytest.mark.parametrize("weights", [MIXED, SHARED, ALONE, [[0, 1.0, 0]] * 4, [[0, 0, 0.5]] * 3 + [[0, 0, 0]]])
def test_a_batch_of_any_adapters_is_what_each_row_gets_of_merged_matrices(weights, few, tokens, monkeypatch):
    monkeypatch.setattr(sparse_experts, "FEW", few)
    decoder, ids = sparse(), IDS[:, :tokens]
    attach(decoder, experts())
    found = decoder(ids, None, Gates.of(torch.tensor(weights))).logits
    for row, own in enumerate(weights):
        close(found[row : row + 1], merged(own, ids[row : row + 1]))
    plain = sparse()(ids).logits
    assert (found[1] - plain[1]).abs().max() > 0.1, "the adapters matter"


@torch.no_grad()
def test_gates_that_only_the_device_knows_are_never_asked_for_their_sizes(monkeypatch):
    decoder = sparse()
    attach(decoder, experts())
    choices, values = torch.tensor([[2], [0], [1], [2]]), torch.tensor([[1.0], [1.0], [0.5], [0.2]])
    gates = Gates.of_choices(choices, values, 3)
    monkeypatch.setattr(Gates, "host_sizes", lambda self: pytest.fail("waits for the device"))
    found = decoder(IDS, None, gates).logits
    close(found[2:3], merged([0, 0.5, 0], IDS[2:3]))


@torch.no_grad()
def test_without_an_adapter_chosen_the_experts_compute_what_they_did(monkeypatch):
    decoder, plain = sparse(), sparse()(IDS).logits
    attach(decoder, experts())
    for form in ("each", "gathered", "of_groups"):
        monkeypatch.setattr(low_rank, form, lambda *_: pytest.fail("a product of nothing"))
    assert decoder(IDS, None, Gates.of(torch.zeros(4, 3))).logits.equal(plain)


def test_no_matrix_is_ever_formed():
    """The largest tensors of a step are the rows; a change of all matrices would be larger."""
    decoder = tiny_decoder(num_experts=16, experts_per_token=2, expert_size=40)
    expert = toy_expert(decoder, 1, rank=1, targets=["gate_proj", "up_proj", "down_proj"])
    expert.adapt(decoder)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        decoder(IDS[:1, :2], None, Gates.one(0, 1, 1, torch.zeros(1))).logits.sum()
    held = {weight.numel() for weight in decoder.parameters()}
    assert max(size for size in sizes if size not in held) < 80 * 32 * 2 < 16 * 80 * 32


def test_gradients_are_those_of_merged_matrices():
    expert = toy_expert(sparse(), 1, rank=3, targets=["gate_proj", "up_proj", "down_proj"])
    decoder, gates = sparse(), Gates.one(0, 4, 1, torch.zeros(1))
    decoder.requires_grad_(False)
    expert.adapt(decoder)
    decoder(IDS, None, gates).logits.square().mean().backward()

    plain = sparse()
    matrix = "layers.1.mlp.experts.2.gate_up_proj"
    slot = plain.get_submodule("layers.1.mlp.experts").gate_up_proj
    merge(plain, [expert], [1.0])
    plain(IDS).logits.square().mean().backward()
    change = slot.grad[2]
    a, b = expert.pairs[matrix]
    stack = decoder.get_submodule("layers.1.mlp.experts").stacks["gate_up_proj"]
    close(stack.a.grad[0, 2], expert.scale * b @ change)
    close(stack.b.grad[0, 2], expert.scale * a @ change.t())
    assert all(part.grad is None for part in decoder.parameters() if part.shape[:1] != (1,))


def test_weights_of_the_gates_get_a_gradient():
    decoder = sparse()
    attach(decoder, experts())
    weights = torch.tensor(SHARED, requires_grad=True)
    decoder(IDS, None, Gates.dense(weights)).logits.square().mean().backward()
    step = 1e-6
    for row, expert in ((0, 0), (1, 2)):
        values = []
        for sign in (1, -1):
            moved = torch.tensor(SHARED)
            moved[row, expert] += sign * step
            with torch.no_grad():
                values.append(decoder(IDS, None, Gates.dense(moved)).logits.square().mean())
        expected = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(weights.grad[row, expert], expected, rtol=1e-5, atol=1e-8)


def test_detach_takes_out_what_attach_put_in():
    for index, expert in enumerate(experts()):
        decoder = sparse()
        attach(decoder, experts())
        found = expert.held_in(decoder, index)
        assert found.pairs.keys() == expert.pairs.keys()
        for path, (a, b) in expert.pairs.items():
            assert found.pairs[path][0].equal(a) and found.pairs[path][1].equal(b)


def test_gate_and_up_are_one_matrix_where_both_are_targets():
    fresh = LoRA.fresh(sparse(), 2, 4.0, ALL_TARGETS, range(3), torch.Generator().manual_seed(0))
    a, b = fresh.pairs["layers.0.mlp.experts.1.gate_up_proj"]
    assert a.shape == (2, 32) and b.shape == (2, 40) and not b.any()
    assert fresh.in_experts == {f"layers.{n}.mlp.experts": 3 * 2 * (32 + 40 + 20 + 32) for n in range(3)}
    alone = LoRA.fresh(sparse(), 2, 4.0, ["up_proj"], range(3), torch.Generator().manual_seed(0))
    assert alone.targets == ["up_proj"] and alone.pairs["layers.0.mlp.experts.1.up_proj"][1].shape == (2, 20)


def test_matrices_are_views_of_what_the_experts_compute_with():
    decoder = sparse()
    found = matrices(decoder)
    experts = decoder.get_submodule("layers.2.mlp.experts")
    assert isinstance(experts, Experts) and len(found) == 3 * 3 * 4
    for name, own in (("up_proj", experts.gate_up_proj[1, 20:]), ("down_proj", experts.down_proj[1])):
        matrix = found[f"layers.2.mlp.experts.1.{name}"]
        assert matrix.equal(own) and matrix.data_ptr() == own.data_ptr()


def test_gates_of_another_batch_raise():
    decoder = sparse()
    attach(decoder, [toy_expert(decoder, 1, targets=["down_proj"])])
    assert isinstance(decoder.get_submodule("layers.0.mlp.experts"), LowRankExperts)
    with pytest.raises(GatesError, match="another batch"):
        decoder(IDS, None, Gates.one(0, 3, 1, torch.zeros(1)))
