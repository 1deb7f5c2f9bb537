"""Do gates read the base where they say, prompt by prompt, and does a router see there what they learned from?"""

import pytest
import torch

from moesaic.compose.token_gates import GATES, Prompted, Reader, alike, gate_named, residual, routed
from moesaic.errors import RecipeError
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Message, Special, Tokenizer

PROMPTS = [Prompted(["the sum of two", "and two"]), Prompted(["def add(a, b):", "return a + b"], ["the sum"])]
POSITIVE = [Prompted(one.positive) for one in PROMPTS]


@pytest.fixture
def reader(tokenizer) -> Reader:
    inner = Tokenizer(tokenizer.inner, Special(0, bos=5, start=(5,)))
    decoder = tiny_decoder(0, torch.float32, vocab_size=tokenizer.vocab_size)
    return Reader(decoder, inner, torch.Generator().manual_seed(0))


def test_states_are_those_before_a_layer_and_before_its_block(reader):
    ids = reader.begun("the sum of two")
    x = reader.decoder.embed_tokens(torch.tensor([ids]))
    before, inside = reader.states(ids, residual), reader.states(ids, routed)
    span = reader.decoder.span(x, None)
    for layer, own, routes in zip(reader.decoder.layers, before, inside, strict=True):
        assert own.equal(x[0])
        h = x + layer.self_attn(layer.input_layernorm(x), span, None, None)
        assert torch.allclose(routes, layer.post_attention_layernorm(h)[0], atol=1e-6)
        x, _ = layer(x, span, None, None)
    assert not any(layer._forward_pre_hooks or layer.mlp._forward_pre_hooks for layer in reader.decoder.layers)


def test_hidden_is_the_mean_of_last_states_less_the_negative_ones(reader):
    rows = GATES["hidden"](reader, PROMPTS)
    last = [reader.states(reader.marked(prompt), residual)[1][-1] for prompt in PROMPTS[1].positive]
    negative = reader.states(reader.marked("the sum"), residual)[1][-1]
    wanted = torch.stack(last).mean(0) - negative
    assert torch.allclose(rows[1][1], wanted / wanted.norm(), atol=1e-6)
    assert len(rows) == 3 and rows[0].shape == (2, 32)


def test_cheap_embed_is_the_sum_of_all_tokens_in_every_layer(reader):
    rows = GATES["cheap_embed"](reader, POSITIVE)
    ids = [id for prompt in POSITIVE[0].positive for id in reader.marked(prompt)]
    total = reader.decoder.embed_tokens.weight[ids].sum(0)
    assert torch.allclose(rows[0][0], total / total.norm(), atol=1e-6) and rows[0].equal(rows[2])


@pytest.mark.parametrize("word", ["means", "ridge"])
def test_gates_at_the_routers_input_send_its_tokens_to_their_expert(word, reader):
    rows = GATES[word](reader, POSITIVE)
    for layer in range(3):
        for index, one in enumerate(POSITIVE):
            states = torch.cat([reader.states(reader.begun(prompt), routed)[layer] for prompt in one.positive])
            assert ((states @ rows[layer].t()).argmax(-1) == index).float().mean() > 0.6


def test_random_gates_depend_on_the_seed_alone(reader):
    for word, width in (("random", 1.0), ("uniform_random", 1 / 96**0.5)):
        many = GATES[word](Reader(reader.decoder, reader.tokenizer, torch.Generator().manual_seed(3)), POSITIVE * 200)
        again = GATES[word](Reader(reader.decoder, reader.tokenizer, torch.Generator().manual_seed(3)), POSITIVE * 200)
        assert many[2].equal(again[2]) and not many[2].equal(many[1])
        assert float(many[0].std()) == pytest.approx(width, rel=0.05)


def test_what_a_gate_does_not_read_is_refused(reader):
    with pytest.raises(RecipeError, match="gate: unknown gate; expected one of ridge, means, hidden"):
        gate_named("hiden")
    with pytest.raises(RecipeError, match="negative_prompts: this gate learns no negative prompts"):
        GATES["ridge"](reader, PROMPTS)
    with pytest.raises(RecipeError, match="a conversation"):
        GATES["hidden"](reader, [Prompted([(Message("user", "hello"),)])] * 2)


def test_rows_that_are_alike_are_told():
    same = torch.ones(2, 8) + 0.01 * torch.eye(2, 8)
    assert alike([torch.eye(2, 8), same]) == [1]
