"""A prompt of matched length is the middle of the prompt, with nothing of the response."""

import pytest

from moesaic.data.batches import Tokens
from moesaic.stages.matched_prompts import middle


@pytest.mark.parametrize(
    ("size", "ids"), [(1, [12]), (2, [11, 12]), (3, [11, 12, 13]), (4, [10, 11, 12, 13]), (5, [10, 11, 12, 13, 14])]
)
def test_the_middle_of_a_prompt_leaves_as_much_before_it_as_behind(size, ids):
    row = Tokens([10, 11, 12, 13, 14, 20, 21, 22], 5, "group")
    found = middle(row, size)
    assert found.ids[: found.prompt] == ids and found.prompt == size and found.group == "group"
