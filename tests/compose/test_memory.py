"""Are the formulas for what is needed at work near to what is allocated?"""

import torch

from moesaic.compose import memory
from moesaic.config import published, published_encoder
from moesaic.nn import Cache
from moesaic.testing import tiny_config

WIDE = {"hidden_size": 64, "intermediate_size": 192, "num_layers": 4, "vocab_size": 300, "context": 128}


def test_a_cache_takes_what_is_counted():
    config = tiny_config(**WIDE)
    cache = Cache.empty(config, 3, 100, torch.zeros(()))
    (block,) = cache.memory.blocks
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*block.keys, *block.values))
    assert memory.cache(config, 3, 100, 4) == size
    assert memory.cache(published("llama-3-8b"), 1, 8192, 2) == 2**30


def test_an_encoder_has_neither_cache_nor_rotations_and_an_ffn_without_a_gate():
    config, tokens = published_encoder("bert-base"), 3 * 77
    assert memory.cache(config, 3, 77, 2) == memory.rotations(config, 2) == 0
    assert memory.activations(config, 3, 77, 2) == 2 * (tokens * (3 * 768 + 2 * 3072) + 3 * 30522)


def test_a_token_passes_through_the_chosen_experts_of_a_sparse_ffn():
    assert published("mixtral-8x7b").ffn_width == 2 * 14336 and published("mistral-7b").ffn_width == 14336
