"""Is the merged average the mixture with uniform gates, and are the parameters counted that there are?"""

import pytest
import torch

from moesaic.adapters import attach, feedforward
from moesaic.artefacts.adapter import StoredExpert
from moesaic.artefacts.ffn import StoredFFN
from moesaic.artefacts.whole_model import StoredModel
from moesaic.config import Feature
from moesaic.kinds import KINDS
from moesaic.kinds.parameters import asleep, count_blocks, count_models, count_parameters
from moesaic.model.deciding import Decider
from moesaic.model.mixture import AdapterMixture
from moesaic.model.sentences import SentenceEncoder, SentenceRouter
from moesaic.model.whole import ModelMixture
from moesaic.routing import Gates, Selection, controls
from moesaic.routing.routers import MLPRouter, Router
from moesaic.testing import FixedRouter, tiny_decoder, tiny_encoder, toy_expert, toy_ffn


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mixture(router: Router) -> AdapterMixture:
    decoder = tiny_decoder()
    some = [toy_expert(decoder, 1, rank=2), toy_expert(decoder, 2, rank=4, targets=["q_proj"], layers=range(1, 3))]
    attach(decoder, some)
    decider = Decider.over(decoder, ("one", "two"), router, Feature.parse("hidden_mean"), Selection())
    return AdapterMixture(decoder, decider, 0)


def average(word, decoder, experts):
    """The dense model that a kind makes of experts as they are in memory."""
    stored = {"lora": StoredExpert, "ffn": StoredFFN, "model": StoredModel}[word]
    return KINDS[word].average(decoder, [stored(expert, {}) for expert in experts])


@torch.no_grad()
@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_uniform_gates_equal_the_merged_average(num_experts):
    """Ranks, scales, targets and layers differ: at site `linear` the identity is exact."""
    plain = tiny_decoder()
    some = [
        toy_expert(plain, 1, rank=3),
        toy_expert(plain, 2, rank=5, targets=["q_proj", "down_proj"], layers=range(1, 3)),
        toy_expert(plain, 3, rank=1, targets=["v_proj"]),
    ][:num_experts]
    decoder = tiny_decoder()
    attach(decoder, some)
    text = torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(0))
    routed = decoder(text, None, Gates.of(controls.uniform(2, num_experts))).logits
    merged = average("lora", tiny_decoder(), some)(text).logits
    assert (routed - merged).abs().max() <= 1e-12 * merged.abs().max()
    assert (merged - plain(text).logits).abs().max() > 0.1


def test_average_changes_the_decoder_it_is_given_and_only_what_experts_touch():
    decoder, plain = tiny_decoder(), tiny_decoder()
    assert average("lora", decoder, [toy_expert(plain, 1, targets=["v_proj"], layers=range(1, 2))]) is decoder
    changed = [name for name, weight in decoder.named_parameters() if not weight.equal(plain.get_parameter(name))]
    assert changed == ["layers.1.self_attn.v_proj.weight"]


def test_parameters_are_counted_by_part():
    """Base: 61 tied embeddings of 32, 3 blocks, norms. Experts of rank 3 and 4: themselves, not their padded stacks."""
    plain = tiny_decoder()
    experts = [toy_expert(plain, 1, rank=3), toy_expert(plain, 2, rank=4)]
    decoder = tiny_decoder()
    attach(decoder, experts)
    feature, soft = Feature.parse("hidden_mean"), Selection(kind="soft")
    routed = AdapterMixture(decoder, Decider.over(decoder, ("one", "two"), MLPRouter(32, 2, [5]), feature, soft), 0)
    decisions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    counts = count_parameters(routed, experts, decisions)
    block = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + 2 * 32
    sizes = {"q_proj": 64, "k_proj": 48, "v_proj": 48, "o_proj": 64, "gate_proj": 80, "up_proj": 80, "down_proj": 80}
    one, two = (3 * rank * sum(sizes.values()) for rank in (3, 4))
    base, router = 61 * 32 + 3 * block + 32, 32 * 5 + 5 + 5 * 2 + 2
    assert counts == {
        "total": base + one + two + router,
        "base": base,
        "experts": one + two,
        "router": router,
        "trained": one + two + router,
        "active": base + router + (one + two) // 2,
    }


def test_an_encoder_that_the_router_reads_is_counted_as_no_part_of_what_was_trained():
    encoder, inner = tiny_encoder(), MLPRouter(32, 2, [5])
    plain = count_parameters(mixture(inner), [], torch.zeros(1, 0))
    counts = count_parameters(
        mixture(SentenceRouter(SentenceEncoder(encoder, lambda text: [1, 2], 20), inner)), [], torch.zeros(1, 0)
    )
    size = sum(weight.numel() for weight in encoder.parameters())
    assert counts == plain | {"encoder": size, "total": plain["total"] + size, "active": plain["active"] + size}


def test_a_router_without_tensors_has_no_parameters():
    assert count_parameters(mixture(FixedRouter([[0.0, 0]])), [], torch.zeros(1, 0))["router"] == 0


def test_of_a_sparse_base_only_the_chosen_experts_are_active():
    """A tiny Mixtral: in each of 3 layers 4 experts of 3 x 32 x 48, of which a token asks one."""
    decoder = tiny_decoder(num_experts=4, experts_per_token=1)
    expert = toy_expert(decoder, 1, rank=2, targets=["q_proj"])
    attach(decoder, [expert])
    decider = Decider.over(decoder, ("one",), FixedRouter([[0.0]]), Feature.parse("hidden_mean"), Selection())
    routed = AdapterMixture(decoder, decider, 0)
    counts = count_parameters(routed, [expert], torch.ones(3, 1))
    glu, attention, norms, gate = 3 * 32 * 48, 32 * (32 + 16 + 16 + 32), 2 * 32, 32 * 4
    assert counts["base"] == 61 * 32 + 32 + 3 * (attention + norms + gate + 4 * glu)
    assert counts["active"] == 61 * 32 + 32 + 3 * (attention + norms + gate + 1 * glu) + 3 * 2 * 64
    assert asleep(decoder) == 3 * 3 * glu and asleep(tiny_decoder()) == 0


@torch.no_grad()
def test_the_average_of_blocks_is_their_mean_and_the_base_stands_in_where_an_expert_has_none():
    plain = tiny_decoder()
    one, two = toy_ffn(plain, 1), toy_ffn(plain, 2, range(1, 2))
    merged = average("ffn", tiny_decoder(), [one, two])
    for layer in range(3):
        gate = plain.get_parameter(f"layers.{layer}.mlp.gate_proj.weight")
        other = two.blocks[f"layers.{layer}.mlp"][0] if layer == 1 else gate
        mean = (one.blocks[f"layers.{layer}.mlp"][0] + other) / 2
        torch.testing.assert_close(merged.get_parameter(f"layers.{layer}.mlp.gate_proj.weight"), mean)
    text = torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(0))
    same = average("ffn", tiny_decoder(), [one, one])(text).logits
    decoder = tiny_decoder()
    feedforward.attach(decoder, [one])
    torch.testing.assert_close(same, decoder(text, None, Gates.one(0, 2, 1, same)).logits)
    assert (merged(text).logits - same).abs().max() > 0.01


@torch.no_grad()
def test_the_average_of_models_is_the_mean_of_every_tensor_and_a_tied_head_counts_once():
    experts = [tiny_decoder(seed, tie_embeddings=True) for seed in (1, 2, 3)]
    merged = average("model", tiny_decoder(9, tie_embeddings=True), experts)
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(weight, sum(expert.get_parameter(name) for expert in experts) / 3)
    assert merged.lm_head.weight is merged.embed_tokens.weight


def test_blocks_are_counted_where_they_are_met():
    """Two of three layers have experts: in layer 2 both, in layer 1 the first; nobody stands beside layer 0."""
    plain, block = tiny_decoder(), 3 * 32 * 48
    experts = [toy_ffn(plain, 1, range(1, 3)), toy_ffn(plain, 2, range(2, 3))]
    base = sum(weight.numel() for weight in plain.parameters())
    router = FixedRouter([[0.0, 0.0]])

    def active(*rows: list[float]) -> int:
        counts = count_blocks(plain, router, experts, torch.tensor(rows))
        assert (counts["total"], counts["base"], counts["experts"]) == (base + 3 * block, base, 3 * block)
        assert (counts["router"], counts["trained"]) == (0, 3 * block)
        return counts["active"] - base

    assert active([1.0, 0.0]) == active([0.0, 1.0]) == active([0.0, 0.0]) == 0, "one block a layer, whoever has it"
    assert active([0.5, 0.5]) == 2 * block, "both in layer 2; in layer 1 the first beside the base"
    assert active([0.5, 0.0]) == 2 * block, "each beside the base"
    assert active([1.0, 0.0], [0.5, 0.5]) == block, "the mean over the rows"


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_whole_models_are_counted_once_and_by_who_answers(level):
    base, one = tiny_decoder(0), tiny_decoder(1)
    two = tiny_decoder(2)
    two.layers[0].mlp.gate_proj.weight = base.layers[0].mlp.gate_proj.weight
    size, shared = sum(weight.numel() for weight in base.parameters()), 32 * 48
    router = MLPRouter(32, 3, [])
    decider = Decider.over(base, ("one", "two", "same"), router, Feature.parse("hidden_mean"), Selection())
    mixture = ModelMixture(base, [one, two, base], decider, level)

    def counts(*rows: list[float]) -> dict[str, int]:
        return count_models(mixture, torch.tensor(rows))

    routed = 3 * 32 + 3
    found = counts([1.0, 0.0, 0.0])
    assert found["base"] == size and found["experts"] == 2 * size - shared, "the base as an expert adds nothing"
    assert found["total"] == 3 * size - shared + routed and found["trained"] == 2 * size - shared + routed
    read = size if level == "token" else 0
    assert found["active"] == size + read + routed
    assert counts([0.0, 0.0, 1.0])["active"] == counts([0.0, 0.0, 0.0])["active"] == size + routed
    assert counts([0.5, 0.5, 0.0])["active"] == 2 * size + read + routed
    assert counts([1.0, 0.0, 0.0], [0.5, 0.5, 0.0])["active"] == size * 3 // 2 + read + routed
