"""Text of no domain: shares and ranks by hand and by the plain definition, and the limits in words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import DataError
from moesaic.evaluate.outside import Doubt, broken_limits, outside_report
from moesaic.ops.metrics import auroc

FEW = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=9)


def doubt(none: list[float], limit: float = 0.5) -> Doubt:
    return Doubt(np.array(none), np.array(none) > limit)


@given(FEW, FEW)
def test_the_auroc_is_the_share_of_pairs_in_order(inside, outside):
    pairs = [(b > a) + (a == b) / 2 for a in inside for b in outside]
    assert auroc(np.array(outside), np.array(inside)) == pytest.approx(sum(pairs) / len(pairs))


def test_every_number_by_hand():
    found = outside_report(
        doubt([0.1, 0.2, 0.7, 0.1]), {"noise": doubt([0.9, 0.8]), "news": doubt([0.15, 0.6, 0.95, 1.0])}
    )
    assert (found["rows"], found["abstained"]) == (6, 5 / 6)
    assert found["inside"] == {"rows": 4, "abstained": 1 / 4}
    assert found["kinds"]["noise"] == {"rows": 2, "abstained": 1.0, "auroc": 1.0}
    assert found["kinds"]["news"] == {"rows": 4, "abstained": 3 / 4, "auroc": (2 + 3 + 4 + 4) / 16}
    assert found["auroc"] == (2 + 3 + 4 + 4 + 4 + 4) / 24


def test_rows_of_both_sorts_are_needed():
    for inside, kinds in (([], {"noise": [0.5]}), ([0.5], {}), ([0.5], {"noise": []})):
        with pytest.raises(DataError, match="rows of domains and of each kind of other text are needed"):
            outside_report(doubt(inside), {kind: doubt(some) for kind, some in kinds.items()})


def test_a_broken_limit_is_a_sentence_and_a_kept_one_is_none():
    def router(answered: float, silent: float) -> dict:
        return {"outside": {"rows": 1000, "abstained": 1 - answered, "inside": {"rows": 9, "abstained": silent}}}

    assert broken_limits(router(0.1, 0.02)) == broken_limits({}) == []
    answered, silent = broken_limits(router(0.101, 0.021))
    assert answered == "Experts answer 10.1% of 1,000 texts of no domain; the limit is 10%."
    assert silent == "The router leaves 2.1% of test rows to the base; the limit is 2%."
