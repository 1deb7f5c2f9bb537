"""Are the choices of sparse layers counted token by token, padding left out, and is a dense base silent?"""

import pytest
import torch

from moesaic.data.batches import Tokens
from moesaic.evaluate.sparse_layers import layer_utilisation
from moesaic.testing import tiny_decoder

ROWS = [Tokens([1, 2, 3, 4, 5], 2, "a"), Tokens([6, 7, 8], 1, "b"), Tokens([9, 1, 2, 3, 4, 5, 6], 3, "c")]


@pytest.mark.parametrize("batch", [1, 3])
def test_every_token_that_is_read_counts_once_for_each_expert_it_asks(batch):
    decoder = tiny_decoder(0, torch.float32, num_experts=3, experts_per_token=2, expert_size=8)
    found = layer_utilisation(decoder, ROWS, batch)
    assert [entry["layer"] for entry in found] == list(range(len(decoder.layers)))
    for entry in found:
        counts = torch.zeros(3)
        for row in ROWS:
            routing = decoder(torch.tensor([row.ids[:-1]]), None, None).routings[entry["layer"]]
            for token in routing.weights:
                counts += token > 0
        shares = counts / counts.sum()
        assert entry["utilisation"] == pytest.approx(shares.tolist())
        entropy = -sum(s * s.log() for s in shares if s)
        assert entry["evenness"] == pytest.approx(float(entropy / torch.tensor(3.0).log()), rel=1e-5)
        assert entry["max_violation"] == pytest.approx(3 * float(shares.max()) - 1)
        assert entry["least_load"] == pytest.approx(3 * float(shares.min()))


def test_a_dense_base_has_no_such_layers():
    assert layer_utilisation(tiny_decoder(0, torch.float32), ROWS, 2) == []
