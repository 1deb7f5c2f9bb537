"""Are the figures of continual learning those of their papers, by hand?"""

import numpy as np
import pytest

from moesaic.errors import DataError
from moesaic.evaluate.continual import (
    DEFINITIONS,
    Sequence,
    backward_gem,
    backward_trace,
    forgetting,
    forward,
    general_change,
    overall,
)

GOLDEN = np.array([[0.8, 0.1], [0.5, 0.7]])


def test_the_golden_matrix():
    assert overall(GOLDEN) == pytest.approx(0.60)
    assert backward_trace(GOLDEN) == pytest.approx(-0.15)
    assert backward_gem(GOLDEN) == pytest.approx(-0.30)
    assert forgetting(GOLDEN) == pytest.approx([0.30, 0.0])


def test_three_tasks_by_hand():
    scores = np.array([[0.6, 0.2, 0.1], [0.9, 0.5, 0.3], [0.4, 0.7, 0.8]])
    assert overall(scores) == pytest.approx((0.4 + 0.7 + 0.8) / 3)
    assert backward_gem(scores) == pytest.approx(((0.4 - 0.6) + (0.7 - 0.5)) / 2)
    assert backward_trace(scores) == pytest.approx(((0.4 - 0.6) + (0.7 - 0.5)) / 3)
    assert forgetting(scores) == pytest.approx([0.5, 0.0, 0.0])  # the best of task 1 came after task 2
    assert forward(scores, np.array([0.3, 0.1, 0.2])) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    others = np.array([[0.5, 0.2], [0.4, 0.3], [0.3, 0.6]])
    assert general_change(others, np.array([0.4, 0.4])) == pytest.approx((-0.1 + 0.2) / 2)


def test_resamples_pass_through_every_figure():
    several = np.stack([GOLDEN, GOLDEN + 0.1])
    before, none = np.zeros((2, 2)), np.zeros((2, 2, 0))
    sequence = Sequence(several, before, none, np.zeros((2, 0)))
    found = sequence.figures()
    assert found["OP"] == pytest.approx([0.6, 0.7]) and "general_change" not in found
    assert found["BWT_GEM"] == pytest.approx([-0.3, -0.3]) and found["forgetting"] == pytest.approx([0.3, 0.3])
    other = Sequence(several, before, np.ones((2, 2, 3)), np.full((2, 3), 0.5)).figures()
    assert other["general_change"] == pytest.approx([0.5, 0.5]) and {*other} == {*DEFINITIONS}


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DataError, match="2 tasks or more"):
        Sequence(np.zeros(shape), np.zeros(shape[1]), np.zeros((shape[0], 0)), np.zeros(0))
