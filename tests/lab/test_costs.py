"""Tests of costs: they are those of the decoder, and a token passes some experts of a sparse arm."""

from dataclasses import replace

import pytest

from moesaic.config import sized
from moesaic.lab.arms import ARMS
from moesaic.lab.costs import costs_of
from moesaic.model.decoder import Decoder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arm", ["dense", "head_mixer", "moe"])
def test_parameters_are_those_of_the_decoder_by_their_use(arm: str, tied: bool) -> None:
    config = ARMS[arm].changes(replace(sized("nano", 300), tie_embeddings=tied))
    weights = dict(Decoder(config).named_parameters())
    found, table = costs_of(config, 64), 300 * 32
    assert found.parameters == sum(one.numel() for one in weights.values())
    experts = sum(one.numel() for name, one in weights.items() if ".experts." in name or "gate_up" in name)
    assert (found.active < found.parameters) == (experts > 0)
    assert found.trained == found.active - (0 if tied else table) and found.inner == found.trained - table
    assert costs_of(config, 128).flops > found.flops
