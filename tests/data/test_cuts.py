from moesaic.data.batches import Tokens
from moesaic.data.cuts import cut_of, told, truncated

ROWS = [Tokens([1, 2, 3], 1, "a", lost=5), Tokens([1, 2], 1, "b"), Tokens([1, 2, 3], 1, "c", lost=7)]


def test_the_share_is_of_all_tokens_of_all_rows():
    assert truncated(ROWS) == 2
    assert cut_of(ROWS) == {"cut": 12 / 20}


def test_rows_that_are_whole_have_no_share_and_no_sentence():
    assert cut_of(ROWS[1:2]) == cut_of([]) == {}
    assert told("test", ROWS[1:2], 3) is None


def test_a_sentence_gives_the_rows_the_length_its_key_and_the_share():
    assert told("test", ROWS, 3) == (
        "2 of 3 test rows are cut to 3 tokens (train.length): 60.0% of all tokens are not read"
    )
