"""Property: have the published sizes as many parameters as are published?"""

import pytest
import torch

from moesaic.config import PUBLISHED, published
from moesaic.model.decoder import Decoder

COUNTS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "qwen2-0.5b": 494_032_768,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_exactly_the_published_number_of_parameters(name):
    with torch.device("meta"):
        decoder = Decoder(published(name))
    assert sum(parameter.numel() for parameter in decoder.parameters()) == COUNTS[name]
