"""Does the head gate scale the output of each head by a sigmoid of attention's input?"""

import pytest
import torch

from moesaic.nn.head_gate import HeadGate
from moesaic.testing import tiny_config

pytestmark = pytest.mark.usefixtures("double")


@torch.no_grad()
def test_the_head_gate_equals_a_loop_over_heads() -> None:
    gate, h, x = HeadGate(tiny_config()), torch.randn(2, 3, 4, 8), torch.randn(2, 3, 32)
    gate.head_gate.weight.normal_()
    found = gate(h, x, None)
    for head in range(4):
        share = torch.sigmoid(x @ gate.head_gate.weight[head])
        torch.testing.assert_close(found[:, :, head], h[:, :, head] * share[..., None])
