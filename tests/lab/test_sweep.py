"""Tests of sweeps: the best rate is interior, and every arm has as many trials as the others."""

import math

import pytest

from moesaic.lab.sweep import best, beyond, further, interior


def valley(bottom: float, rate: float) -> float:
    return abs(math.log2(rate / bottom)) if rate < 8 * bottom else math.inf


def swept(bottoms: dict[str, float], most: int = 9) -> dict[str, dict[float, float]]:
    sweeps = {arm: {rate: valley(bottom, rate) for rate in (1.0, 2.0, 4.0)} for arm, bottom in bottoms.items()}
    while more := further(sweeps, most):
        for arm, rate in more.items():
            sweeps[arm][rate] = valley(bottoms[arm], rate)
    return sweeps


def test_a_sweep_with_an_interior_best_rate_is_not_extended() -> None:
    found = swept({"dense": 2.0, "mixer": 2.1})
    assert [sorted(tried) for tried in found.values()] == [[1, 2, 4]] * 2


@pytest.mark.parametrize(("bottom", "rates"), [(0.25, [0.125, 0.25, 0.5, 1, 2, 4]), (16.0, [1, 2, 4, 8, 16, 32])])
def test_a_sweep_extends_itself_beyond_the_end_until_the_best_rate_is_interior(
    bottom: float, rates: list[float]
) -> None:
    (tried,) = swept({"dense": bottom}).values()
    assert sorted(tried) == rates and best(tried) == bottom and interior(tried)


def test_all_arms_get_as_many_trials_as_the_one_that_needs_most() -> None:
    found = swept({"dense": 2.0, "far": 16.0})
    assert {len(tried) for tried in found.values()} == {6}
    assert best(found["dense"]) == 2.0 and best(found["far"]) == 16.0


def test_a_sweep_ends_at_its_limit_with_the_best_rate_at_an_end() -> None:
    (tried,) = swept({"dense": 1024.0}, most=5).values()
    assert len(tried) == 5 and not interior(tried)


def test_a_rate_that_diverged_is_never_the_best() -> None:
    tried = {1.0: 3.0, 2.0: math.inf, 4.0: math.inf}
    assert best(tried) == 1.0 and not interior(tried) and beyond(tried) == 0.5
