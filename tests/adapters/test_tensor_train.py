"""Does an expert of tensor trains compute what its cores say, in training as by its pairs, on decoders and encoders?"""

import pytest
import torch
from torch import Tensor, nn

from moesaic.adapters import Cores, Factors, LoRADesign, TensorTrain, TrainDesign, attach, merge
from moesaic.adapters.tensor_train import TensorTrainLinear
from moesaic.errors import CompatibilityError, GatesError
from moesaic.model.decoder import Decoder
from moesaic.nn import Linear
from moesaic.routing import Gates
from moesaic.testing import tiny_decoder, tiny_encoder, toy_expert

TARGETS = {"decoder": ["q_proj", "v_proj", "down_proj"], "encoder": ["query", "value"]}
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model(kind: str) -> nn.Module:
    return tiny_decoder() if kind == "decoder" else tiny_encoder()


def states(of: nn.Module, gates: Gates | None, ids: Tensor = IDS) -> Tensor:
    return of(ids, None, gates).logits if isinstance(of, Decoder) else of(ids, gates=gates).hidden


def expert(of: nn.Module, seed: int = 0, rank: int = 4, **changes) -> TensorTrain:
    """One that changes every output it touches."""
    targets = TARGETS["decoder" if isinstance(of, Decoder) else "encoder"]
    generator = torch.Generator().manual_seed(seed)
    made = TensorTrain.fresh(of, rank, 3.0, changes.pop("targets", targets), range(99), generator, **changes)
    for train in made.cores.values():
        train.outputs[-1].normal_(0, 0.5, generator=generator)
    return made


def one(rows: int = 2) -> Gates:
    return Gates.one(0, rows, 1, torch.zeros(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", TARGETS)
def test_in_training_it_is_its_pairs_and_what_merging_them_gives_with_the_gradients(kind):
    made = expert(model(kind))
    trained, paired, merged = (model(kind) for _ in range(3))
    made.adapt(trained)
    attach(paired, [made.lora()])
    merge(merged, [made.lora()], [1.0])
    found = states(trained, one())
    close(found, states(paired, one()))
    close(found, states(merged, None))
    assert (found - states(model(kind), None)).abs().max() > 0.05, "the expert matters"

    for train in made.cores.values():
        for core in (*train.inputs, *train.outputs):
            core.requires_grad_()
    through = model(kind)
    through.requires_grad_(False)
    for path, (a, b) in made.lora().pairs.items():  # the matrix as an ordinary tensor of the graph
        slot = through.get_submodule(path)
        weight = slot.weight + 3.0 * b.t() @ a
        del slot.weight
        slot.weight = weight
    states(through, None).square().mean().backward()
    found.square().mean().backward()
    for path, train in made.cores.items():
        slot = trained.get_submodule(path)
        for own, core in zip((*slot.inputs, *slot.outputs), (*train.inputs, *train.outputs), strict=True):
            assert own.grad.any()
            close(own.grad, core.grad)


def test_the_slot_is_the_formula_row_by_row():
    """y = W x + b + gate * alpha * TT(x), TT entry by entry from the definition of a train."""
    torch.manual_seed(0)
    base = Linear(6, 4, bias=True)
    for weight in base.parameters():
        nn.init.normal_(weight)
    cores = Cores((torch.randn(1, 3, 2), torch.randn(2, 2, 2)), (torch.randn(2, 2, 2), torch.randn(2, 2, 1)))
    matrix = torch.zeros(4, 6)
    for i in range(6):
        for o in range(4):
            (g1, g2), (g3, g4) = cores
            matrix[o, i] = (g1[:, i % 3] @ g2[:, i // 3] @ g3[:, o // 2] @ g4[:, o % 2]).item()
    x, weights = torch.randn(3, 5, 6), torch.tensor([[1.0], [0.0], [0.3]])
    found = TensorTrainLinear(base, cores, 2.5)(x, Gates.of(weights))
    close(found, base(x, None) + weights[:, :, None] * 2.5 * x @ matrix.t())


@torch.no_grad()
@pytest.mark.parametrize("kind", TARGETS)
def test_a_fresh_expert_with_zero_changes_nothing_at_all_and_can_learn(kind):
    fresh = TensorTrain.fresh(model(kind), 4, 3.0, TARGETS[kind], range(9), torch.Generator().manual_seed(0))
    trained = model(kind)
    fresh.adapt(trained)
    assert states(trained, one()).equal(states(model(kind), None))
    with torch.enable_grad():
        states(trained, one()).square().mean().backward()
    for path in fresh.cores:
        slot = trained.get_submodule(path)
        assert slot.outputs[-1].grad.any() and not slot.inputs[0].grad.any()


def test_zero_draws_a_as_lora_does_and_lets_b_keep_lengths():
    base = nn.Module()
    base.layers = nn.ModuleList([nn.Module()])
    base.layers[0].query = Linear(768, 3072)
    made = TensorTrain.fresh(base, 8, 1.0, ["query"], range(1), torch.Generator().manual_seed(0))
    a, b = made.lora().pairs["layers.0.query"]
    assert a.std() == pytest.approx((3 * 768) ** -0.5, rel=0.3) and not b.any()
    made.cores["layers.0.query"].outputs[-1].fill_(1.0)
    moved = made.lora().pairs["layers.0.query"][1].square().mean()
    assert moved == pytest.approx(1, rel=0.5), "a step in the last core is a step of that size in B"


def test_published_cores_have_norm_1_and_none_is_zero():
    made = TensorTrain.fresh(
        *(tiny_decoder(), 4, 3.0, ["q_proj"], range(9), torch.Generator().manual_seed(0)), init="published"
    )
    for train in made.cores.values():
        for core in (*train.inputs, *train.outputs):
            assert core.norm() == pytest.approx(1.0) and core.abs().min() > 0
            assert core.abs().max() <= (3 / core.numel()) ** 0.5 * 1.5, "uniform: no entry far from the others"


def test_the_same_seed_draws_the_same_expert():
    one, two, other = (expert(tiny_decoder(), seed) for seed in (1, 1, 2))
    for path, train in one.cores.items():
        assert train.inputs[0].equal(two.cores[path].inputs[0])
        assert not train.inputs[0].equal(other.cores[path].inputs[0])


def test_an_expert_says_what_it_touches_and_counts_its_cores():
    made = TensorTrain.fresh(tiny_decoder(), 2, 3.0, ["v_proj", "q_proj"], range(1, 9), torch.Generator())
    assert made.targets == ["q_proj", "v_proj"] and made.layers == [1, 2]
    assert made.cores["layers.1.self_attn.v_proj"].factors.sizes == (32, 16)
    assert made.num_parameters == sum(
        core.numel() for train in made.cores.values() for core in (*train.inputs, *train.outputs)
    )
    lora = made.lora()
    assert (lora.rank, lora.alpha, lora.scale) == (2, 6.0, 3.0)
    assert (lora.targets, lora.layers) == (made.targets, made.layers)


def test_targets_may_have_factors_of_their_own():
    own = {"q_proj": Factors((4, 8), (8, 4)), "v_proj": Factors((32,), (4, 4))}
    made = TensorTrain.fresh(tiny_decoder(), 4, 1.0, [*own], range(9), torch.Generator(), own)
    assert {path.rsplit(".", 1)[-1]: train.factors for path, train in made.cores.items()} == own


@torch.no_grad()
def test_the_cores_of_a_layer_change_that_layer_and_only_what_follows():
    made = expert(tiny_decoder())
    decoder = tiny_decoder()
    made.adapt(decoder)

    def outputs() -> list[Tensor]:
        x, found = decoder.embed_tokens(IDS), []
        for layer in range(3):
            x, _ = decoder.run(x, None, range(layer, layer + 1), one())
            found.append(x)
        return found

    whole = outputs()
    for path, train in made.cores.items():
        layer, slot = int(path.split(".")[1]), decoder.get_submodule(path)
        for own, core in zip((*slot.inputs, *slot.outputs), (*train.inputs, *train.outputs), strict=True):
            own.zero_()
            changed = outputs()
            assert all(a.equal(b) for a, b in zip(whole[:layer], changed[:layer], strict=True)), path
            assert all((a - b).abs().max() > 1e-5 for a, b in zip(whole[layer:], changed[layer:], strict=True)), path
            own.copy_(core)


@torch.no_grad()
def test_trains_and_pairs_of_other_ranks_stand_beside_each_other_row_by_row():
    plain, train, pair = tiny_decoder(), expert(tiny_decoder(), 1), toy_expert(tiny_decoder(), 2)
    mixed = tiny_decoder()
    attach(mixed, [train.lora(), pair.lora()])
    found = states(mixed, Gates.of(torch.eye(2)))
    for row, lone in enumerate((train, pair)):
        merged = tiny_decoder()
        merge(merged, [lone.lora()], [1.0])
        close(found[row], states(merged, None)[row])
    assert pair.lora() is pair and (found - states(plain, None)).abs().amax((1, 2)).min() > 0.05


@pytest.mark.parametrize("kind", [LoRADesign, TrainDesign])
def test_what_was_trained_comes_out_as_a_value(kind):
    design = kind(4, 2.0, ["q_proj", "down_proj"])
    decoder = tiny_decoder()
    decoder.requires_grad_(False)
    fresh = design.fresh(decoder, range(1, 3), torch.Generator().manual_seed(0))
    before = states(decoder, None)
    fresh.adapt(decoder)
    assert sum(p.numel() for p in decoder.parameters() if p.requires_grad) == fresh.num_parameters
    assert design.num_parameters(tiny_decoder(), range(1, 3)) == fresh.num_parameters
    optimiser = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], 0.5)
    for _ in range(2):
        states(decoder, one()).square().mean().backward()
        optimiser.step()
    trained = fresh.detach(decoder)
    assert type(trained) is type(fresh) and (trained.rank, trained.alpha) == (fresh.rank, fresh.alpha)
    found = states(decoder, one())
    assert not found.equal(before)
    again = tiny_decoder()
    attach(again, [trained.lora()])
    close(states(again, one()), found)
    for weight in decoder.parameters():
        weight.detach().zero_()
    assert trained.num_parameters == fresh.num_parameters
    assert any(a.any() for a, _ in trained.lora().pairs.values()), "a value, not a view of the decoder"


def test_what_is_put_in_is_a_copy():
    made, decoder = expert(tiny_decoder()), tiny_decoder()
    made.adapt(decoder)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.zero_()
    assert all(core.any() for train in made.cores.values() for core in train.inputs)


def test_a_design_finds_the_smallest_rank_of_a_size():
    decoder, every = tiny_decoder(), range(9)
    for kind in (LoRADesign, TrainDesign):
        design = kind(1, 1.0, ["q_proj"])
        for size in (1, 500, 1000):
            found = design.of_size(size, decoder, every)
            assert found.num_parameters(decoder, every) >= size
            smaller = kind(found.rank - 1, 1.0, ["q_proj"])
            assert found.rank == 1 or smaller.num_parameters(decoder, every) < size
        assert design.of_size(10**9, decoder, every).rank == 32
        exact = kind(3, 1.0, ["q_proj"])
        assert design.of_size(exact.num_parameters(decoder, every), decoder, every).rank == 3


def test_rows_without_the_expert_get_the_base_alone_and_missing_gates_raise():
    decoder = tiny_decoder()
    expert(decoder).adapt(decoder)
    assert states(decoder, Gates.one(-1, 2, 1, torch.zeros(1))).equal(states(tiny_decoder(), None))
    with pytest.raises(GatesError):
        states(decoder, None)
    with pytest.raises(GatesError):
        states(decoder, one(3))


def test_an_expert_of_another_base_is_refused_by_name():
    made = expert(tiny_decoder(), targets=["q_proj"])
    with pytest.raises(
        CompatibilityError, match=r"layers\.0\.self_attn\.q_proj: .*expected \(16, 16\); got \(32, 32\)"
    ):
        made.adapt(tiny_decoder(hidden_size=16))
    with pytest.raises(CompatibilityError, match=r"layers\.2\.self_attn\.q_proj: the base has no such module"):
        made.adapt(tiny_decoder(num_layers=2))
    with pytest.raises(CompatibilityError, match="q_proj: an impossible rank; expected 1 to 32"):
        TensorTrain.fresh(tiny_decoder(), 33, 1.0, ["q_proj"], range(9), torch.Generator())
    with pytest.raises(CompatibilityError, match="targets: no linear"):
        TensorTrain.fresh(tiny_decoder(), 2, 1.0, ["query"], range(9), torch.Generator())
    decoder = tiny_decoder()
    made.adapt(decoder)
    with pytest.raises(CompatibilityError, match="already carries experts"):
        made.adapt(decoder)
