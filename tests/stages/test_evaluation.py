"""Decisions that take one expert a row are looked up in the experts' own scores."""

import numpy as np
import torch

from moesaic.evaluate.statistics import Scores
from moesaic.stages.evaluation import looked_up, picks_one


def test_a_row_that_no_router_claims_is_looked_up_in_the_base():
    base = Scores(np.array([1.0, 2.0]), np.array([1, 1]), ["a", "a"], ["x", "y"])
    expert = Scores(np.array([5.0, 7.0]), np.array([1, 1]), ["a", "a"], ["x", "y"])
    found = looked_up({"base": base, "expert:a": expert}, ("a",), torch.tensor([[0.0], [1.0]]))
    assert found.nats.tolist() == [1.0, 7.0]
    assert picks_one(torch.tensor([[0.0], [1.0]]))
    assert not picks_one(torch.tensor([[0.9, 0.0]]))
    assert not picks_one(torch.tensor([[1.0, 1.0]]))
