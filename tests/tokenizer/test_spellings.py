"""Is every spelling found, the longest where several begin, and none left when all are broken?"""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from moesaic.tokenizer.spellings import Spellings

tokens = st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=6)


@given(tokens, st.text("ab<|c", max_size=30))
@example(["ab", "bc"], "abc")
@example(["<a", "<a|"], "<a|<a<<a|")
def test_a_text_is_cut_as_by_the_longest_of_all_alternatives(tokens, text):
    known = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    found = re.findall("|".join(map(re.escape, known)) or "(?!)", text)
    cut = Spellings(tokens).cut(text)
    assert [piece for piece, special in cut if special] == found
    assert "".join(piece for piece, _ in cut) == text and all(piece for piece, _ in cut)


@given(tokens, st.text("ab<|c", max_size=30))
@example(["aa"], "aaaa")
def test_what_is_broken_spells_nothing_and_is_the_text_but_for_the_marks(tokens, text):
    spellings = Spellings(tokens)
    broken = spellings.broken(text, "#")
    assert not list(spellings.places(broken)) and broken.replace("#", "") == text
    assert broken == text or list(spellings.places(text))


@given(tokens, st.text("ab<|c", max_size=30))
def test_the_first_spelling_is_the_first_token_that_is_cut_out(tokens, text):
    cut = [piece for piece, special in Spellings(tokens).cut(text) if special]
    assert Spellings(tokens).first(text) == (cut[0] if cut else None)
