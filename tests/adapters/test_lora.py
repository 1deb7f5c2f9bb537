"""Do attached experts compute what their merged dense weights would, and only for the rows that chose them?"""

import pytest
import torch
from torch import Tensor

from moesaic.adapters import LoRA, LowRankLinear, attach, merge
from moesaic.adapters.lora import MASKED_LIMIT
from moesaic.errors import CompatibilityError
from moesaic.model.decoder import Decoder
from moesaic.nn import Linear
from moesaic.ops import low_rank
from moesaic.routing import Gates
from moesaic.testing import ALL_TARGETS, tiny_decoder, toy_expert

FORMS = ("single", "masked", "gathered")


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The low-rank forms in the order in which they were called."""
    found: list[str] = []

    def counted(name: str, form):
        def call(*args):
            found.append(name)
            return form(*args)

        return call

    for name in FORMS:
        monkeypatch.setattr(low_rank, name, counted(name, getattr(low_rank, name)))
    return found


def ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(61, (rows, tokens), generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def experts() -> list[LoRA]:
    """Of other ranks, scales, targets and layers; the third touches only a part of what the first does."""
    plain = tiny_decoder()
    return [
        toy_expert(plain, 1, rank=3),
        toy_expert(plain, 2, rank=5, targets=["q_proj", "down_proj"], layers=range(1, 3)),
        toy_expert(plain, 3, rank=1, targets=["v_proj"], layers=range(0, 1)),
    ]


def adapted(some: list[LoRA]) -> Decoder:
    decoder = tiny_decoder()
    attach(decoder, some)
    return decoder


def dense(some: list[LoRA], weights: list[float]) -> Decoder:
    """Every entry of every change by its formula: alpha / rank x sum_r B[r, o] A[r, i]."""
    decoder = tiny_decoder()
    with torch.no_grad():
        for expert, weight in zip(some, weights, strict=True):
            for path, (a, b) in expert.pairs.items():
                change = torch.einsum("ro,ri->oi", b, a) * (expert.alpha / expert.rank)
                decoder.get_submodule(path).weight.add_(weight * change)
    return decoder


def slot(num_experts: int = 3, rank: int = 2, dtype: torch.dtype = torch.float64) -> LowRankLinear:
    base = Linear(6, 5).to(dtype)
    torch.nn.init.normal_(base.weight)
    a, b = torch.randn(num_experts, rank, 6, dtype=dtype), torch.randn(num_experts, rank, 5, dtype=dtype)
    return LowRankLinear(base, a, b, torch.linspace(0.5, 2, num_experts, dtype=dtype))


def naive(layer: LowRankLinear, x: Tensor, weights: Tensor) -> Tensor:
    rows = []
    for row, some in zip(x, weights, strict=True):
        matrix = layer.base.weight
        for expert, weight in enumerate(some):
            matrix = matrix + weight * layer.scale[expert] * layer.b[expert].t() @ layer.a[expert]
        rows.append(row @ matrix.t())
    return torch.stack(rows)


# --- attach, merge ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("weights", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0.3, 0.2], [0, 0.6, 0.1]])
def test_attached_experts_equal_their_merged_weights(weights):
    some = experts()
    gates = Gates.of(torch.tensor([weights, [0.0] * 3]))
    found = adapted(some)(ids(2, 5), None, gates).logits
    close(found[0], dense(some, weights)(ids(2, 5)[:1]).logits[0])
    close(found[1], tiny_decoder()(ids(2, 5)[1:]).logits[0])
    assert (found[0] - tiny_decoder()(ids(2, 5)[:1]).logits[0]).abs().max() > 0.1, "the experts matter"


@torch.no_grad()
def test_merge_adds_the_weighted_changes_to_the_weights():
    some, decoder = experts(), tiny_decoder()
    merge(decoder, some, [0.5, -1.0, 2.0])
    for (name, found), (_, expected) in zip(
        decoder.named_parameters(), dense(some, [0.5, -1.0, 2.0]).named_parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)


@torch.no_grad()
def test_a_fresh_expert_changes_nothing_and_can_learn():
    plain = tiny_decoder()
    fresh = LoRA.fresh(plain, 4, 8.0, ALL_TARGETS, range(3), torch.Generator().manual_seed(0))
    decoder = adapted([fresh])
    found = decoder(ids(2, 5), None, Gates.one(0, 2, 1, torch.zeros(1))).logits
    assert found.equal(plain(ids(2, 5)).logits)
    for a, b in fresh.pairs.values():
        bound = a.shape[1] ** -0.5
        assert not b.any() and a.abs().max() <= bound and a.std() == pytest.approx(bound / 3**0.5, rel=0.25)
    with torch.enable_grad():
        decoder(ids(2, 5), None, Gates.one(0, 2, 1, torch.zeros(1))).logits.square().mean().backward()
    assert all(decoder.get_submodule(path).b.grad.any() for path in fresh.pairs)


def test_an_expert_says_what_it_touches():
    plain = tiny_decoder()
    expert = LoRA.fresh(plain, 2, 3.0, ["v_proj", "q_proj"], range(1, 9), torch.Generator())
    assert expert.targets == ["q_proj", "v_proj"] and expert.layers == [1, 2] and expert.scale == 1.5
    assert expert.num_parameters == 2 * (2 * (32 + 32) + 2 * (32 + 16))
    assert set(expert.pairs) == {f"layers.{k}.self_attn.{name}" for k in (1, 2) for name in ("q_proj", "v_proj")}


def test_the_same_seed_draws_the_same_expert():
    plain = tiny_decoder()
    one, two, other = (
        LoRA.fresh(plain, 2, 2.0, ["q_proj"], range(3), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    for path, (a, _) in one.pairs.items():
        assert a.equal(two.pairs[path][0]) and not a.equal(other.pairs[path][0])


def test_detach_takes_out_what_attach_put_in():
    expert = experts()[1]
    decoder = adapted([expert])
    found = expert.detach(decoder)
    assert found.pairs.keys() == expert.pairs.keys()
    for path, (a, b) in expert.pairs.items():
        assert found.pairs[path][0].equal(a) and found.pairs[path][1].equal(b)
    assert (found.rank, found.alpha) == (expert.rank, expert.alpha)
    path = next(iter(expert.pairs))
    decoder.get_submodule(path).a.data.zero_()
    assert found.pairs[path][0].any(), "a value, not a view of the decoder"


@torch.no_grad()
def test_every_change_of_every_layer_and_target_reaches_its_layers_output():
    """Zeroing one of them changes the output of its own block and of no block before it."""
    expert = toy_expert(tiny_decoder(), 1)
    decoder, gates, text = adapted([expert]), Gates.one(0, 1, 1, torch.zeros(1)), ids(1, 4)

    def outputs() -> list[Tensor]:
        x, found = decoder.embed_tokens(text), []
        for layer in range(3):
            x, _ = decoder.run(x, None, range(layer, layer + 1), gates)
            found.append(x)
        return found

    whole = outputs()
    assert len(expert.pairs) == 3 * 7
    for path, (_, b) in expert.pairs.items():
        layer = int(path.split(".")[1])
        decoder.get_submodule(path).b.zero_()
        changed = outputs()
        assert all(one.equal(other) for one, other in zip(whole[:layer], changed[:layer], strict=True)), path
        assert (changed[layer] - whole[layer]).abs().max() > 1e-4, path
        decoder.get_submodule(path).b.copy_(b[None])


@torch.no_grad()
def test_modules_with_ranks_and_scales_of_their_own_add_what_their_formula_says_attached_and_merged():
    small, large = (toy_expert(tiny_decoder(), seed, rank=rank) for seed, rank in ((1, 2), (2, 5)))
    up, q = "layers.1.mlp.up_proj", "layers.0.self_attn.q_proj"
    mixed = LoRA(2, 4.0, {**small.pairs, up: large.pairs[up]}, {up: 7.0, q: 1.5})
    expected = dense([small], [1.0])
    for path, scale in ((up, 7 / 5), (q, 1.5 / 2)):
        a, b = mixed.pairs[path]
        weight = tiny_decoder().get_submodule(path).weight
        expected.get_submodule(path).weight.copy_(weight + scale * torch.einsum("ro,ri->oi", b, a))
    assert (mixed.rank_of(up), mixed.scale_of(up), mixed.scale_of(q), mixed.scale) == (5, 7 / 5, 0.75, 2.0)
    merged = tiny_decoder()
    merge(merged, [mixed], [1.0])
    logits = expected(ids(1, 5)).logits
    close(merged(ids(1, 5)).logits, logits)
    other = toy_expert(tiny_decoder(), 3, rank=9, targets=["q_proj"])
    close(adapted([other, mixed])(ids(1, 5), None, Gates.of(torch.tensor([[0.0, 1.0]]))).logits, logits)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_experts_of_another_base_are_refused_by_name():
    with pytest.raises(CompatibilityError, match=r"q_proj\.lora_A: .*another base; expected 32 columns; got 16"):
        attach(tiny_decoder(), [toy_expert(tiny_decoder(hidden_size=16), 1, targets=["q_proj"])])
    with pytest.raises(CompatibilityError, match=r"up_proj\.lora_B: .*another base; expected 48 columns; got 40"):
        attach(tiny_decoder(), [toy_expert(tiny_decoder(intermediate_size=40), 1, targets=["up_proj"])])
    with pytest.raises(CompatibilityError, match=r"layers\.3\.self_attn\.q_proj: the base has no such module"):
        attach(tiny_decoder(), [toy_expert(tiny_decoder(num_layers=4), 1, targets=["q_proj"])])


def test_a_decoder_carries_experts_once_and_only_on_linears():
    decoder = adapted(experts())
    with pytest.raises(CompatibilityError, match="already carries experts"):
        attach(decoder, [experts()[2]])
    pair = (torch.zeros(1, 32), torch.zeros(1, 32))
    with pytest.raises(CompatibilityError, match=r"layers\.0\.input_layernorm: .*no linear"):
        attach(tiny_decoder(), [LoRA(1, 1.0, {"layers.0.input_layernorm": pair})])


def test_targets_that_the_base_does_not_have_are_refused():
    with pytest.raises(CompatibilityError, match="targets: no linear"):
        LoRA.fresh(tiny_decoder(), 2, 2.0, ["query"], range(3), torch.Generator())
    with pytest.raises(CompatibilityError, match="targets: no linear"):
        LoRA.fresh(tiny_decoder(), 2, 2.0, ["q_proj"], range(3, 5), torch.Generator())


# --- the layer: right, and no more than needed ------------------------------------------------------------------------

SPREAD = [[0.5, 0, 0], [0, 0, 0], [0, 0.7, 0.3], [0, 0, 1.0]]


@pytest.mark.parametrize(
    ("weights", "tokens", "form"),
    [
        ([[0, 0.5, 0], [0, 0, 0], [0, 1.0, 0], [0, 0.2, 0]], 4, ["single"]),
        ([[0, 0.5, 0], [0, 0, 0], [0, 1.0, 0], [0, 0.2, 0]], 1, ["single"]),
        (SPREAD, 4, ["gathered"]),
        (SPREAD, 1, ["masked"]),
        ([[0.2, 0.3, 0.5]] * 4, 4, ["masked"]),
        ([[0.0] * 3] * 4, 4, []),
    ],
    ids=["one expert", "one expert, one token", "some each", "some each, one token", "all", "none"],
)
def test_a_layer_equals_the_naive_loop_and_computes_only_what_is_needed(weights, tokens, form, calls):
    layer, x = slot(), torch.randn(4, tokens, 6)
    weights = torch.tensor(weights)
    found = layer(x, Gates.of(weights))
    close(found, naive(layer, x, weights))
    assert calls == form


def test_many_columns_are_gathered_even_for_one_token(calls):
    layer = slot(rank=MASKED_LIMIT // 3 + 1)
    x, weights = torch.randn(4, 1, 6), torch.tensor(SPREAD)
    close(layer(x, Gates.of(weights)), naive(layer, x, weights))
    assert calls == ["gathered"]


@pytest.mark.parametrize("tokens", [1, 4])
def test_gates_that_only_the_device_knows_are_never_asked_for_their_sizes(tokens, monkeypatch):
    layer, x = slot(), torch.randn(4, tokens, 6)
    choices, values = torch.tensor([[2], [2], [2], [2]]), torch.tensor([[0.1], [0.4], [1.0], [0.7]])
    gates = Gates.of_choices(choices, values, 3)
    monkeypatch.setattr(Gates, "host_sizes", lambda self: pytest.fail("waits for the device"))
    close(layer(x, gates), naive(layer, x, gates.weights))


@pytest.mark.parametrize("weights", [[[0, 0.5, 0], [0, 1.0, 0]], [[0.5, 0.5, 0], [0, 0, 1.0]], [[0.2, 0.3, 0.5]] * 2])
def test_a_layer_passes_gradients_to_input_factors_and_gates(weights):
    layer = slot()
    x, gate = torch.randn(2, 3, 6, requires_grad=True), torch.tensor(weights, requires_grad=True)
    leaves = [x, gate, layer.a, layer.b]
    ours = torch.autograd.grad(layer(x, Gates.of(gate)).square().sum(), leaves)
    theirs = torch.autograd.grad(naive(layer, x, gate).square().sum(), leaves)
    chosen = gate.detach() != 0  # the gradient of a gate that is shut is not computed
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        close(one * chosen if index == 1 else one, other * chosen if index == 1 else other)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 7])
def test_in_float32_a_row_alone_and_in_a_batch_agree(tokens):
    """Alone it takes the single form, in the batch another."""
    layer, x = slot(dtype=torch.float32), torch.randn(4, tokens, 6, dtype=torch.float32)
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.4, 0, 0.6], [0, 0, 1.0]], dtype=torch.float32)
    gates = Gates.of(weights)
    together = layer(x, gates)
    assert together.dtype == torch.float32
    for row in range(4):
        alone = layer(x[row : row + 1], gates.select([row]))[0]
        assert (together[row] - alone).abs().max() <= 1e-5 * alone.abs().max()


@torch.no_grad()
def test_a_decoder_computes_nothing_for_experts_when_all_rows_abstain(calls):
    decoder = adapted(experts())
    found = decoder(ids(2, 4), None, Gates.one(-1, 2, 3, torch.zeros(1))).logits
    assert calls == [] and found.equal(tiny_decoder()(ids(2, 4)).logits)


@pytest.mark.parametrize("weights", [[[1.0, 0, 0]] * 2, [[0.5, 0.5, 0], [0, 0, 1]], [[0.2, 0.3, 0.5]] * 2])
@pytest.mark.parametrize("tokens", [1, 4])
def test_beside_a_narrow_matrix_pairs_stay_float32_and_their_product_is_rounded_once(weights, tokens):
    generator = torch.Generator().manual_seed(0)
    base = Linear(8, 6).requires_grad_(False)
    base.weight.normal_(generator=generator)
    base.to(torch.bfloat16)
    exact = {"dtype": torch.float32, "generator": generator}
    a, b = torch.randn(3, 2, 8, **exact), torch.randn(3, 2, 6, **exact)
    layer = LowRankLinear(base, a, b, torch.tensor([1.0, 0.5, 2.0], dtype=torch.float32))
    x = torch.randn(2, tokens, 8, **exact).bfloat16()
    gates = Gates.of(torch.tensor(weights, dtype=torch.float32))
    change = torch.einsum("nti,eri,ero,ne->nto", x.float(), a, b, gates.weights * layer.scale)
    y = layer(x, gates)
    assert y.dtype == torch.bfloat16
    assert y.equal((base(x, None).float() + change).bfloat16())
    y.float().sum().backward()
    assert layer.a.grad is not None and layer.a.grad.dtype == torch.float32
    nothing = layer(x, Gates.of(torch.zeros(2, 3)))
    assert nothing.equal(base(x, None)) and not nothing.equal(y)


def test_beside_a_narrow_base_an_expert_is_drawn_as_beside_a_wide_one():
    wide, narrow = tiny_decoder(dtype=torch.float32), tiny_decoder(dtype=torch.float32).bfloat16()
    for path, (a, b) in toy_expert(wide, 1).pairs.items():
        own = toy_expert(narrow, 1).pairs[path]
        assert own[0].equal(a) and own[1].equal(b)
    attach(narrow, [toy_expert(wide, 1)])
    slot = narrow.get_submodule("layers.0.self_attn.q_proj")
    assert slot.a.dtype == slot.b.dtype == slot.scale.dtype == torch.float32
    assert slot.base.weight.dtype == torch.bfloat16
