"""Is every way in which two tokenizers differ found, also where they have the same size?"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tokenizers

from moesaic.tokenizer import Special, Template, Tokenizer, compare
from moesaic.tokenizer.comparing import SHOWN, SPACES


@pytest.fixture(scope="module")
def one() -> Tokenizer:
    return Tokenizer.train(["the sum of two and two is four"], 275)


LEFT = {"type": "Strip", "strip_left": True, "strip_right": False}


def changed(one: Tokenizer, change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    found = json.loads(one.inner.to_str())
    change(found)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(found)), one.special)


def test_a_tokenizer_is_like_itself(one, tmp_path):
    one.save(tmp_path)
    assert compare(one, one) == [] and compare(one, Tokenizer.load(tmp_path, one.eos)) == []


def test_a_permuted_vocabulary_of_the_same_size_is_found(one):
    def permute(found: dict[str, Any]) -> None:
        vocab = found["model"]["vocab"]
        found["model"]["vocab"] = {text: id if id == 0 else len(vocab) - id for text, id in vocab.items()}

    other = changed(one, permute)
    assert other.vocab_size == one.vocab_size and other.encode("the sum") != one.encode("the sum")
    (difference,) = compare(one, other)
    assert (difference.what, difference.count, difference.clashes) == ("tokens", 274, 274)
    assert len(difference.first) == SHOWN
    assert [where for where, _, _ in difference.first] == [str(id) for id in range(1, SHOWN + 1)]
    assert difference.first[0] == ("1", one.inner.id_to_token(1), one.inner.id_to_token(274))
    assert str(difference).startswith("tokens: 274 (1: ! / ") and str(difference).endswith(" and 264 more)")


def test_one_token_more_is_found_by_its_id(one):
    other = changed(one, lambda found: None)
    other.inner.add_special_tokens(["<pad>"])
    found = {difference.what: difference for difference in compare(one, other)}
    assert found.keys() == {"tokens", "added tokens"}
    assert found["tokens"].first == (("275", "(none)", "<pad>"),)
    assert compare(other, one)[0].first == (("275", "<pad>", "(none)"),)
    assert found["tokens"].clashes == 0, "an id that only one of them has"


def test_swapped_special_ids_are_found_by_their_role(one):
    before = Tokenizer(one.inner, Special(0, (0, 7), bos=5, pad=6))
    after = Tokenizer(one.inner, replace(before.special, eos=5, ends=(5, 7), bos=0))
    (difference,) = compare(before, after)
    assert (difference.what, difference.count) == ("special ids", 2)
    assert difference.first == (("bos", "5", "0"), ("eos", "(0, 7)", "(5, 7)"))
    assert compare(before, Tokenizer(one.inner, replace(before.special, start=(5,))))[0].first[0][0] == "start"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda found: found["model"]["merges"].reverse(), "merges"),
        (lambda found: found.update(normalizer={"type": "NFC"}), "steps"),
        (lambda found: found["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "steps"),
        (lambda found: found["added_tokens"][0].update(lstrip=True), "added tokens"),
    ],
)
def test_what_else_decides_the_ids_is_found(change, what, one):
    assert [difference.what for difference in compare(one, changed(one, change))] == [what]


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["pre_tokenizer"]["pretokenizers"].pop(0),  # no merge of this tokenizer has a digit
        lambda found: found["model"].update(ignore_merges=True),  # merges lead to every token
        lambda found: found["model"].update(unk_token="<unk>"),  # every byte has a token
    ],
)
def test_another_form_of_the_same_steps_is_no_difference(change, one):
    assert compare(one, changed(one, change)) == []


def test_steps_that_treat_only_leading_spaces_otherwise_are_told_apart(one):
    (difference,) = compare(one, changed(one, lambda found: found.update(normalizer=LEFT)))
    assert difference.what == SPACES


def test_another_template_is_found(one):
    (difference,) = compare(one, Tokenizer(one.inner, one.special, Template("{{ messages }}")))
    assert str(difference) == "templates: 1 (chat template: None / {{ messages }})"


def test_scores_of_a_unigram_are_found():
    def unigram(score: float) -> Tokenizer:
        model = tokenizers.models.Unigram([("<unk>", 0.0), ("a", score)], 0)
        return Tokenizer(tokenizers.Tokenizer(model), Special(0))

    assert [difference.what for difference in compare(unigram(-1.0), unigram(-2.0))] == ["scores"]
