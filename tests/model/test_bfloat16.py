"""Property: with models in bfloat16 every mixture says what it says in float32, within a stated tolerance.

Routers stay in float32. The models have random weights that are large, so that every layer matters; rounding errors are
therefore larger than those of a trained model.
"""

import pytest
import torch
from every_mixture import MIXTURES, in_type

from moesaic.model.features import Prompts
from moesaic.routing import Gates, Routing
from moesaic.testing import prefilled

BF16 = torch.bfloat16
TOLERANCE = 0.02
"""Of a logit, as a share of the largest logit: five roundings of 2^-8."""

STEPS = 4
WEIGHTS = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.25, 0.25], [0.0, 0.0]])
PROMPTS = Prompts.pad([[5, 6, 7, 8, 9], [100, 3], [40, 41, 42], [9, 8, 7]], ["a sum", "def", "sum def", "none"])


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Logits are near, and the most probable token is the same wherever the first two are further apart than that."""
    limit = TOLERANCE * expected.abs().max()
    assert (found.float() - expected).abs().max() <= limit
    first, second = expected.topk(2, -1).values.unbind(-1)
    clear = first - second > 2 * limit
    assert clear.any() and found.argmax(-1)[clear].equal(expected.argmax(-1)[clear])


@pytest.mark.parametrize("kind", MIXTURES)
@torch.no_grad()
def test_prompts_decoded_tokens_and_scores_are_those_of_float32(kind):
    exact, lower = MIXTURES[kind](), in_type(MIXTURES[kind](), BF16)
    forced = Routing(WEIGHTS, WEIGHTS.log())
    (expected, one), (found, other) = (prefilled(model, PROMPTS, STEPS, forced) for model in (exact, lower))
    near(found, expected)
    for _ in range(STEPS):
        ids = expected.argmax(-1)
        (expected, one), (found, other) = exact.decode(ids, one), lower.decode(ids, other)
        near(found, expected)
    near(lower.score(PROMPTS.ids, Gates.of(WEIGHTS)), exact.score(PROMPTS.ids, Gates.of(WEIGHTS)))


@pytest.mark.parametrize("kind", [kind for kind in MIXTURES if kind.startswith("token")])
@torch.no_grad()
def test_decisions_about_tokens_are_made_from_sums_that_lower_types_do_not_lose(kind):
    lower = in_type(MIXTURES[kind](), BF16)
    _, session = prefilled(lower, PROMPTS, STEPS)
    assert session.routing.logits.dtype == torch.float32
    assert session.cache.running.total.dtype == torch.float32
