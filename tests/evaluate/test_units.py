"""Is a share of the best figure what it says, in each unit?"""

import pytest

from moesaic.errors import WeightsError
from moesaic.evaluate.units import NATS, SCORE, read_evaluation
from moesaic.files import write_sealed


def test_one_percent_of_a_score_is_of_the_best_score_and_included():
    best = 1 - 0.5  # losses are what scores lack to 1
    assert SCORE.close(1 - 0.496, best, 0.01) and not SCORE.close(1 - 0.494, best, 0.01)
    assert SCORE.close(1 - 0.25, best, 0.5) and SCORE.close(best, best, 0)
    assert not SCORE.close(1 - 0.499, best, 0)


def test_one_percent_of_a_negative_score_is_below_it():
    assert SCORE.close(1 + 0.201, 1 + 0.2, 0.01) and not SCORE.close(1 + 0.203, 1 + 0.2, 0.01)


def test_one_percent_of_nats_is_of_the_best_nats_and_included():
    assert NATS.close(2.0, 2.0, 0) and NATS.close(2.02, 2.0, 0.01) and not NATS.close(2.03, 2.0, 0.01)


def test_an_unknown_unit_is_named_with_its_file(tmp_path):
    path = tmp_path / "evaluation.json"
    for known in ({}, {"measure": "nats"}, {"measure": "score"}):
        write_sealed(path, known)
        assert known.items() <= read_evaluation(path).items()
    for unknown in ("bits", 2147483648, None, ["nats"]):
        write_sealed(path, {"measure": unknown})
        with pytest.raises(WeightsError, match="evaluation.json: measure: the wrong type; expected nats or score"):
            read_evaluation(path)
