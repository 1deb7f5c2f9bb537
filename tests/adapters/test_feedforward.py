"""Do feed-forward experts compute what each row's own model would, and only for the rows that chose them?"""

import copy

import pytest
import torch
from torch import Tensor, nn

from moesaic.adapters.feedforward import FFN, MixedFFN, attach, attached
from moesaic.config import Feature
from moesaic.errors import CompatibilityError, GatesError
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts
from moesaic.model.mixture import AdapterMixture
from moesaic.nn import GLU
from moesaic.nn.ffn import ACTIVATIONS
from moesaic.ops import glu
from moesaic.routing import Gates, Selection
from moesaic.testing import FixedRouter, prefilled, tiny_decoder, toy_ffn

WEIGHTS = [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.25, 0.5], [0.0, 0.0, 1.0]]


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    """The forms in the order in which they were called, each with its number of rows; a base's own block is `base`."""
    found: list[tuple[str, int]] = []
    for name in ("block", "blended"):
        form = getattr(glu, name)
        monkeypatch.setattr(glu, name, lambda x, *a, n=name, f=form: found.append((n, len(x))) or f(x, *a))
    forward = GLU.forward
    monkeypatch.setattr(GLU, "forward", lambda s, x, g: found.append(("base", len(x))) or forward(s, x, g))
    return found


def ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(61, (rows, tokens), generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def experts() -> list[FFN]:
    """The second has no block in the first layer, the third one in the last layer only."""
    plain = tiny_decoder()
    return [toy_ffn(plain, 1), toy_ffn(plain, 2, range(1, 3)), toy_ffn(plain, 3, range(2, 3))]


def mixed(some: list[FFN], **changes) -> Decoder:
    decoder = tiny_decoder(**changes)
    attach(decoder, some)
    return decoder


def swapped(expert: FFN) -> Decoder:
    """The base with an expert's blocks in place of its own: the model that the expert was taken from."""
    decoder = tiny_decoder()
    with torch.no_grad():
        for path, (gate, up, down) in expert.blocks.items():
            slot = decoder.get_submodule(path)
            slot.gate_proj.weight.copy_(gate)
            slot.up_proj.weight.copy_(up)
            slot.down_proj.weight.copy_(down.t())
    return decoder


class NaiveSum(nn.Module):
    """sum_e w_e ffn_e(x) of one row, block by block; the base has what is left of 1."""

    def __init__(self, base: nn.Module, blocks: list[nn.Module], weights: Tensor):
        super().__init__()
        self.all, self.shares = nn.ModuleList([*blocks, base]), [*weights.tolist(), 1 - float(weights.sum())]

    def forward(self, x, gates):
        return sum(w * block(x, None)[0] for w, block in zip(self.shares, self.all, strict=True)), None


def alone(some: list[FFN], weights: Tensor) -> Decoder:
    """What a row of these weights is computed by, without any grouping."""
    decoder, models = tiny_decoder(), [swapped(expert) for expert in some]
    for layer, block in enumerate(decoder.layers):
        block.mlp = NaiveSum(block.mlp, [model.layers[layer].mlp for model in models], weights)
    return decoder


def test_rows_of_all_kinds_in_one_batch_equal_each_alone():
    """Weighted, chosen, abstaining, and with a share left to the base; experts without a block in some layers."""
    some = experts()
    batch = mixed(some)(ids(5, 6), None, Gates.of(torch.tensor(WEIGHTS))).logits
    for row, weights in enumerate(torch.tensor(WEIGHTS)):
        close(batch[row], alone(some, weights)(ids(5, 6)[row : row + 1]).logits[0])


@pytest.mark.parametrize("kind", ["soft", "top_1", "top_k"])
def test_every_selection_equals_the_loop(kind, calls):
    selection = Selection(kind=kind, k=2 if kind == "top_k" else None)
    logits = torch.tensor([[2.0, 0, 1], [0, 0, 3], [0, 4, 1], [1, 0, 0]])
    some = [toy_ffn(tiny_decoder(), seed) for seed in range(3)]
    weights = selection(logits).weights
    batch = mixed(some)(ids(4, 5), None, Gates.of(weights)).logits
    assert {form for form, _ in calls} == {"blended" if kind == "soft" else "block"}
    for row in range(4):
        close(batch[row], alone(some, weights[row])(ids(4, 5)[row : row + 1]).logits[0])


def test_identical_experts_are_the_dense_model():
    same = [FFN.of(tiny_decoder(), range(99)) for _ in range(3)]
    batch = mixed(same)(ids(5, 6), None, Gates.of(torch.tensor(WEIGHTS))).logits
    close(batch, tiny_decoder()(ids(5, 6)).logits)


def test_one_hot_is_the_model_that_the_expert_was_taken_from():
    some = experts()
    for place, expert in enumerate(some):
        gates = Gates.one(place, 2, 3, torch.zeros(1))
        close(mixed(some)(ids(2, 6), None, gates).logits, swapped(expert)(ids(2, 6)).logits)


def test_a_mixture_of_one_is_its_expert_and_without_weight_the_base():
    expert = toy_ffn(tiny_decoder(), 1)
    decoder = mixed([expert])
    close(decoder(ids(2, 6), None, Gates.of(torch.ones(2, 1))).logits, swapped(expert)(ids(2, 6)).logits)
    base = decoder(ids(2, 6), None, Gates.of(torch.zeros(2, 1))).logits
    assert base.equal(tiny_decoder()(ids(2, 6)).logits)


def test_uniform_weights_are_not_the_merged_average():
    some = [toy_ffn(tiny_decoder(), seed) for seed in (1, 2)]
    mean = FFN(
        {
            path: tuple((a + b) / 2 for a, b in zip(some[0].blocks[path], some[1].blocks[path], strict=True))
            for path in some[0].blocks
        }
    )
    uniform = mixed(some)(ids(2, 6), None, Gates.of(torch.full((2, 2), 0.5))).logits
    assert (uniform - swapped(mean)(ids(2, 6)).logits).abs().max() > 1e-3


def test_select_means_skip_and_rows_of_one_expert_go_together(calls):
    """Of four experts two are chosen; the base, which nobody left a share, is not computed either."""
    decoder = mixed([toy_ffn(tiny_decoder(), seed) for seed in range(4)])
    decoder(ids(3, 2), None, Gates.of(torch.eye(4)[[2, 0, 2]]))
    assert calls == [("block", 1), ("block", 2)] * 3
    calls.clear()
    decoder(ids(3, 2), None, Gates.one(1, 3, 4, torch.zeros(1)))
    assert calls == [("block", 3)] * 3
    calls.clear()
    decoder(ids(3, 2), None, Gates.one(-1, 3, 4, torch.zeros(1)))
    assert calls == [("base", 3)] * 3


def test_rows_that_all_chose_one_expert_are_not_gathered_first(monkeypatch):
    slot, seen = mixed([toy_ffn(tiny_decoder(), seed) for seed in range(3)]).layers[0].mlp, []
    block = glu.block
    monkeypatch.setattr(glu, "block", lambda x, *rest: seen.append(x.data_ptr()) or block(x, *rest))
    x = torch.randn(2, 3, 32)
    slot(x, Gates.one(1, 2, 3, x))
    assert seen == [x.data_ptr()]


def test_weights_that_sum_to_1_but_for_rounding_leave_the_base_nothing(calls):
    weights = torch.tensor([[2.0, 0.3, 1.0]], dtype=torch.float32).softmax(-1)
    weights = weights + torch.tensor([[1e-7, 0, 0]], dtype=torch.float32)
    mixed([toy_ffn(tiny_decoder(), seed) for seed in range(3)])(ids(1, 2), None, Gates.of(weights.double()))
    assert calls == [("blended", 1)] * 3


def test_gradients_reach_experts_and_weights_as_in_the_loop():
    some = [toy_ffn(tiny_decoder(), seed) for seed in range(3)]
    decoder = mixed(some).requires_grad_(False)
    slots = [block.mlp for block in decoder.layers]
    for slot in slots:
        for stack in (slot.gate, slot.up, slot.down):
            stack.requires_grad_(True)
    rows = [[0.5, 0.25, 0.25], [0.0, 0.5, 0.25], [0.75, 0.0, 0.0]]
    weights = torch.tensor(rows, requires_grad=True)
    probe = torch.randn(3, 4, 61)
    (decoder(ids(3, 4), None, Gates.of(weights)).logits * probe).sum().backward()

    again = torch.tensor(rows, requires_grad=True)
    stacks = [[s.detach().clone().requires_grad_() for s in (slot.gate, slot.up, slot.down)] for slot in slots]
    naive = tiny_decoder().requires_grad_(False)
    for block, own in zip(naive.layers, stacks, strict=True):
        block.mlp = ByEinsum(block.mlp, own, again)
    (naive(ids(3, 4)).logits * probe).sum().backward()
    for slot, own in zip(slots, stacks, strict=True):
        for found, expected in zip((slot.gate, slot.up, slot.down), own, strict=True):
            close(found.grad, expected.grad)
    chosen = again.detach() > 0
    close((weights.grad * chosen)[1:], (again.grad * chosen)[1:])
    # of weights that sum to 1 only differences matter: softmax lets nothing else through
    close(*(found.grad[0] - found.grad[0].mean() for found in (weights, again)))


class ByEinsum(nn.Module):
    """The formula itself over all experts, chosen or not."""

    def __init__(self, base: GLU, stacks: list[Tensor], weights: Tensor):
        super().__init__()
        self.base, self.stacks, self.weights = base, stacks, weights

    def forward(self, x, gates):
        gate, up, down = self.stacks
        inner = self.base.act(torch.einsum("ntd,eid->neti", x, gate)) * torch.einsum("ntd,eid->neti", x, up)
        own = torch.einsum("neti,eid,ne->ntd", inner, down, self.weights)
        return own + (1 - self.weights.sum(1))[:, None, None] * self.base(x, None)[0], None


def test_the_mixture_routes_prefills_and_decodes_as_with_adapters():
    some = [toy_ffn(tiny_decoder(), seed, range(2, 3)) for seed in (1, 2)]
    router = FixedRouter([[1.0, 0], [0, 1.0], [3.0, 0]])
    decoder = mixed(some)
    decider = Decider.over(decoder, ("one", "two"), router, Feature.parse("hidden@2"), Selection())
    model = AdapterMixture(decoder, decider, trunk=2)
    rows = [ids(1, n)[0].tolist() for n in (3, 9, 5)]
    logits, session = prefilled(model, Prompts.pad(rows, [""] * 3), 4)
    models = [swapped(expert) for expert in some]
    for _ in range(3):
        for row, expert in enumerate((0, 1, 0)):
            close(logits[row], models[expert](torch.tensor([rows[row]])).logits[0, -1])
        chosen = logits.argmax(-1)
        rows = [[*row, token] for row, token in zip(rows, chosen.tolist(), strict=True)]
        logits, session = model.decode(chosen, session)


def test_what_is_attached_stands_there_by_its_place_and_is_not_copied():
    some = experts()
    assert (some[1].layers, some[1].num_parameters) == ([1, 2], 2 * 3 * 48 * 32)
    decoder = mixed(some)
    for place, expert in enumerate(some):
        found = attached(decoder, place)
        assert found.blocks.keys() == expert.blocks.keys()
        for path, block in expert.blocks.items():
            assert all(one.equal(other) for one, other in zip(found.blocks[path], block, strict=True))
            stack = decoder.get_submodule(path).gate
            assert found.blocks[path][0].untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()


def test_families_with_other_activations_and_norms_are_mixed_alike():
    plain = tiny_decoder(sandwich_norms=True, qk_norm=True, norm_offset=1.0)
    for block in plain.layers:
        block.mlp.act = ACTIVATIONS["gelu_tanh"]
    attach(decoder := copy.deepcopy(plain), [FFN.of(plain, range(99))])
    gates = Gates.of(torch.ones(2, 1))
    close(decoder(ids(2, 5), None, gates).logits, plain(ids(2, 5)).logits)


def test_missing_gates_raise():
    with pytest.raises(GatesError, match="without gates"):
        mixed(experts())(ids(2, 3))


def test_what_does_not_fit_is_refused_by_name():
    plain = tiny_decoder()
    sparse = tiny_decoder(num_experts=4, experts_per_token=2)
    with pytest.raises(CompatibilityError, match=r"layers\.0\.mlp: the base's feed-forward block is sparse"):
        FFN.of(sparse, range(99))
    with pytest.raises(CompatibilityError, match="block is sparse"):
        attach(sparse, [FFN.of(plain, range(99))])
    with pytest.raises(CompatibilityError, match=r"layers\.2\.mlp: the base has no such feed-forward block"):
        attach(tiny_decoder(num_layers=2), [FFN.of(plain, range(99))])
    with pytest.raises(CompatibilityError, match=r"layers\.0\.mlp\.gate: .*another base; expected \[40, 32\]"):
        attach(tiny_decoder(intermediate_size=40), [FFN.of(plain, range(99))])
    with pytest.raises(CompatibilityError, match="carries experts"):
        attach(mixed(experts()), experts())
    with pytest.raises(CompatibilityError, match="no such layers"):
        FFN.of(plain, range(7, 9))
    assert isinstance(mixed(experts()).layers[0].mlp, MixedFFN)
