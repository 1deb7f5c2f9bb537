"""Is an arm brought to the cost of another by the width of its ffn, and by a width that grouped products accept?"""

from dataclasses import replace

import pytest

from moesaic.config import DecoderConfig, sized
from moesaic.errors import RecipeError
from moesaic.lab.arms import ARMS
from moesaic.lab.equal_cost import MULTIPLE, at_flops, at_parameters
from moesaic.ops.counts import counts_of, training_flops

DENSE = replace(sized("small", 512), num_layers=5)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_gets_the_parameters_or_the_operations_of_the_dense_one(name: str) -> None:
    arm = ARMS[name].changes(DENSE)
    total, flops = counts_of(DENSE).total, training_flops(DENSE, 128)
    one, other = at_parameters(arm, total), at_flops(arm, flops, 128)
    experts = max(1, arm.num_experts)
    assert abs(counts_of(one).total - total) <= MULTIPLE / 2 * 3 * 384 * 5 * experts
    assert abs(training_flops(other, 128) - flops) <= 6 * MULTIPLE / 2 * 3 * 384 * 5 * max(1, arm.experts_per_token)
    for resized in (one, other):
        assert resized.intermediate_size % MULTIPLE == 0
        assert replace(resized, intermediate_size=arm.intermediate_size) == arm, "nothing else changes"


def test_the_sparse_arm_already_has_the_operations_of_the_dense_one_but_for_its_router() -> None:
    moe = ARMS["moe"].changes(DENSE)
    router = 6 * 5 * 384 * 8
    assert training_flops(moe, 64) - training_flops(DENSE, 64) == pytest.approx(router)


def test_the_width_of_experts_is_changed_where_they_have_one_of_their_own() -> None:
    config = DecoderConfig(**{**vars(DENSE), "num_experts": 4, "experts_per_token": 1, "expert_size": 64})
    resized = at_parameters(config, 2 * counts_of(config).total)
    assert resized.expert_size > 64 and resized.intermediate_size == config.intermediate_size


def test_a_cost_below_the_least_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"intermediate_size: an arm cannot be so small; expected at least [\d,]+, with"
    ):
        at_parameters(DENSE, 1000)
