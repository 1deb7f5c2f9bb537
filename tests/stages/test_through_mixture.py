"""The rule of a round: a clear gain is needed, no other domain may lose, and no loss since the start may grow."""

import pytest
import torch

from moesaic.data.rows import Example
from moesaic.stages.through_mixture import HeldOut, Measured, keyed, start_of, verdict

N = 40
HELD = HeldOut(
    rows=[None] * 2 * N,
    domains=["own"] * N + ["other"] * N,
    groups=[str(row) for row in range(2 * N)],
    keys=[f"{row} 0" for row in range(2 * N)],
)
NOISE = torch.randn(2 * N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def measured(alone: float, own: float, other: float, noise: float = 0.0) -> Measured:
    """Losses a token of the expert alone, and of both domains through the mixture."""
    spread = 30 + noise * NOISE
    mixture = torch.cat([torch.full((N,), own), torch.full((N,), other)]).double() * 10 + spread
    counts = torch.full((2 * N,), 10.0, dtype=torch.float64)
    return Measured(mixture, torch.full((2 * N,), alone).double() * 10 + spread, counts, torch.zeros(2 * N, 2))


BEFORE = measured(2.0, 2.0, 2.0)
START = start_of(HELD, BEFORE, ["own", "other"])
CASES = {
    "a gain": (measured(1.9, 1.9, 2.0), BEFORE, "kept", []),
    "no change": (BEFORE, BEFORE, "no clear gain", []),
    "a loss": (measured(2.1, 2.1, 2.0), BEFORE, "no clear gain", ["own"]),
    "a gain that is noise": (measured(1.999, 1.999, 2.0, noise=5.0), BEFORE, "no clear gain", []),
    "another domain loses": (measured(1.9, 1.9, 2.05), BEFORE, "worse elsewhere", ["other"]),
    "its own domain loses through the mixture": (measured(1.9, 2.05, 2.0), BEFORE, "worse elsewhere", ["own"]),
    "below the start, and no nearer": (measured(1.8, 1.8, 2.1), measured(1.9, 1.9, 2.1), "kept", []),
    "below the start, and nearer": (measured(1.8, 1.8, 2.05), measured(1.9, 1.9, 2.1), "kept", []),
    "further below the start": (measured(1.8, 1.8, 2.11), measured(1.9, 1.9, 2.1), "worse elsewhere", ["other"]),
}


@pytest.mark.parametrize(("after", "before", "outcome", "worse"), CASES.values(), ids=CASES)
def test_an_outcome_is_that_of_the_rule(after, before, outcome, worse):
    found = verdict(HELD, "own", before, after, START, seed=0)
    assert (found["outcome"], found["worse"]) == (outcome, worse)


def test_small_losses_that_no_interval_shows_add_up_to_one_that_does():
    """Each round loses within its noise; since the start the loss is clear, and the second one is refused."""
    spread = 4 * (NOISE[N:] - NOISE[N:].mean()) / NOISE[N:].std()
    one, two = measured(1.9, 1.9, 2.0), measured(1.8, 1.8, 2.0)
    one.mixture[N:] += 1 + spread
    two.mixture[N:] += 2
    first, second = verdict(HELD, "own", BEFORE, one, START, seed=0), verdict(HELD, "own", one, two, START, seed=0)
    for found in (first, second):
        mean, low, _ = found["domains"]["other"]["difference"]
        assert low < 0 < mean
    assert first["outcome"] == "kept" and first["domains"]["other"]["since_start"][1] < 0
    assert second["outcome"] == "worse elsewhere" and second["worse"] == ["other"]


def test_keys_of_rows_stay_when_rows_are_added():
    one, two = Example("a", "b", "1"), Example("a b", "c", "1")
    assert [key for key, _ in keyed([one, two])] == ["1 0", "1 1"]
    assert [key for key, _ in keyed([Example("x", "y", "0"), one, two])] == ["0 0", "1 0", "1 1"]
