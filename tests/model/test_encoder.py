"""Does the encoder read every text by itself, have the published sizes, and carry experts as a decoder does?"""

import math

import pytest
import torch
from torch import nn

from moesaic.adapters import LoRA, attach, merge
from moesaic.config import EncoderConfig, published_encoder
from moesaic.errors import RecipeError
from moesaic.model.encoder import Attention, Encoder
from moesaic.routing import Gates
from moesaic.testing import tiny_encoder, toy_expert

ROWS = [[5, 17, 3, 8, 60, 2], [9], [4, 4, 31]]
HEADS = ["none", "pooler", "mlm", "classification"]
TARGETS = ["query", "key", "value", "dense"]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def padded(pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([row + [pad] * (6 - len(row)) for row in ROWS])
    return ids, torch.tensor([[1] * len(row) + [0] * (6 - len(row)) for row in ROWS])


@pytest.mark.parametrize(
    ("name", "head", "count"),
    [("bert-base", "pooler", 109_482_240), ("roberta-base", "mlm", 124_697_433), ("minilm-l6", "pooler", 22_713_216)],
)
def test_a_published_encoder_has_its_published_number_of_parameters(name, head, count):
    with torch.device("meta"):
        encoder = Encoder(published_encoder(name, head))
    assert sum(weight.numel() for weight in encoder.parameters()) == count


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_row_gets_the_same_alone_and_padded(family, head):
    encoder = tiny_encoder(family, head)
    ids, mask = padded(encoder.config.pad)
    together = encoder(ids, mask)
    for row, real in enumerate(ROWS):
        alone = encoder(torch.tensor([real]))
        close(together.hidden[row, : len(real)], alone.hidden[0])
        if head == "mlm":
            close(together.logits[row, : len(real)], alone.logits[0])
        if head == "classification":
            close(together.logits[row], alone.logits[0])
        if head == "pooler":
            close(together.pooled[row], alone.pooled[0])
    assert (together.logits is None) == (head in ("none", "pooler"))
    assert (together.pooled is None) == (head != "pooler")


@torch.no_grad()
def test_bert_ignores_which_ids_stand_at_masked_places():
    encoder = tiny_encoder()
    ids, mask = padded(0)
    before = encoder(ids, mask).hidden
    ids[mask == 0] = 42
    close(encoder(ids, mask.bool()).hidden[mask == 1], before[mask == 1])


def test_positions_of_roberta_count_tokens_behind_its_padding_id_and_those_of_bert_columns():
    ids = torch.tensor([[1, 7, 8, 1, 9, 1]])
    assert tiny_encoder("roberta").embeddings.positions(ids).tolist() == [[1, 2, 3, 1, 4, 1]]
    assert tiny_encoder("bert").embeddings.positions(ids).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_text_may_be_as_long_as_the_context():
    for family in ("bert", "roberta"):
        encoder = tiny_encoder(family)
        encoder(torch.full((1, 20), 7))
        with pytest.raises(IndexError):
            encoder(torch.full((1, 21), 7))


@torch.no_grad()
def test_token_types_are_added_and_are_0_where_none_are_given():
    encoder = tiny_encoder()
    ids = torch.tensor([ROWS[0]])
    plain = encoder(ids).hidden
    close(encoder(ids, None, torch.zeros_like(ids)).hidden, plain)
    assert (encoder(ids, None, torch.tensor([[0, 0, 0, 1, 1, 1]])).hidden - plain).abs().max() > 0.01


@torch.no_grad()
def test_attention_equals_a_loop_over_heads_and_tokens():
    config = tiny_encoder().config
    block: Attention = tiny_encoder().layers[0].attention
    x, mask = torch.randn(1, 4, 32), torch.tensor([[True, True, False, True]])
    q, k, v = (linear(x, None)[0] for linear in (block.self.query, block.self.key, block.self.value))
    size = config.hidden_size // config.num_heads
    y = torch.zeros(4, 32)
    for head in range(config.num_heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(4):
            scores = [(q[token, part] @ k[other, part]) / math.sqrt(size) for other in range(4) if mask[0, other]]
            weights = torch.stack(scores).softmax(0)
            seen = [v[other, part] for other in range(4) if mask[0, other]]
            y[token, part] = sum(w * value for w, value in zip(weights, seen, strict=True))
    norm: nn.LayerNorm = block.output.LayerNorm
    close(block(x, mask[:, None, None], None)[0], norm(block.output.dense(y[None], None) + x)[0])


# --- experts ----------------------------------------------------------------------------------------------------------


def experts(encoder: Encoder) -> list[LoRA]:
    return [toy_expert(encoder, seed, targets=targets) for seed, targets in ((1, TARGETS), (2, ["query", "value"]))]


@torch.no_grad()
@pytest.mark.parametrize("head", ["mlm", "classification"])
def test_rows_that_chose_different_experts_get_what_each_expert_gives_alone(head):
    encoder = tiny_encoder("roberta", head)
    ids, mask = padded(1)
    alone = []
    for expert in experts(encoder):
        merged = tiny_encoder("roberta", head)
        merge(merged, [expert], [1.0])
        alone.append(merged(ids, mask).hidden)
    plain = encoder(ids, mask).hidden
    attach(encoder, experts(encoder))
    gates = Gates.of(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
    routed = encoder(ids, mask, None, gates).hidden
    for row, expected in enumerate((alone[1], alone[0], plain)):
        real = mask[row] == 1
        close(routed[row][real], expected[row][real])
    assert (alone[0] - plain).abs().max() > 0.1 and (alone[1] - plain).abs().max() > 0.1


def test_experts_are_found_under_the_names_of_the_hub_and_leave_the_heads_alone():
    expert = experts(tiny_encoder("bert", "classification"))[0]
    own = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    names = (*own, "intermediate.dense", "output.dense")
    assert set(expert.pairs) == {f"layers.{layer}.{name}" for layer in range(2) for name in names}
    assert expert.layers == [0, 1]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_heads": 5}, "num_heads"),
        ({"family": "xlnet"}, "family"),
        ({"pad": 61}, "pad"),
        ({"labels": ("one",)}, "labels"),
        ({"head": "classification"}, "labels"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_their_field(change, field):
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    EncoderConfig(**sizes, context=20)
    with pytest.raises(RecipeError, match=f"^{field}: "):
        EncoderConfig(**{**sizes, "context": 20, **change})
