"""Neutral prompts of a run: fewer ones are some of more, and a guard sees its own share of what all have read."""

from moesaic.data.forms import OTHERS
from moesaic.stages.prompt_forms import neutral_prompts
from moesaic.stages.routers import seen_by


def test_a_guard_sees_its_share_of_the_neutral_rows_that_were_read_for_all():
    few, more = ([one.group for one in neutral_prompts("train", most)] for most in (10, 50))
    assert len(few) == 10 and len(more) == 50 and {*few} < {*more}
    forms = 1 + len(OTHERS)
    assert seen_by(10, "train", 50 * forms).tolist() == [group in few for group in more] * forms
