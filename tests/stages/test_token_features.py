"""A router that decides before every token learns from the features that it will read there."""

from itertools import pairwise

import pytest
import torch

from moesaic.config import Feature
from moesaic.data.batches import Tokens
from moesaic.model.features import Prompts, read
from moesaic.stages.token_features import POINTS, points_of, token_features
from moesaic.testing import tiny_decoder

ROWS = [Tokens([5, 17, 3, 8, 60, 2], 2, "a"), Tokens([9, 4], 1, "b"), Tokens([4, 4, *range(1, 30), 9], 6, "c")]


@torch.no_grad()
@pytest.mark.parametrize("feature", ["embedding_mean", "hidden_mean", "hidden_last"])
def test_it_is_the_feature_of_all_that_stands_before_each_token(feature):
    decoder, parsed = tiny_decoder(), Feature.parse(feature)
    begun = [row.ids[: place + 1] for row in ROWS for place in points_of(row)]
    expected = torch.cat([read(parsed, decoder, 1, Prompts.pad([ids], [""])) for ids in begun])
    torch.testing.assert_close(token_features(parsed, decoder, ROWS), expected, rtol=1e-12, atol=1e-12)


def test_points_are_spread_over_the_response_and_a_short_one_has_fewer():
    assert points_of(ROWS[0]) == [1, 2, 3, 4] and points_of(ROWS[1]) == [0]
    found = points_of(ROWS[2])
    assert len(found) == POINTS and found[0] == 5 and found[-1] == len(ROWS[2].ids) - 2
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) - min(steps) <= 1
