"""Are BLEU of one text and SARI those of their papers: by hand, and as other packages compute them?"""

import warnings

import pytest

from moesaic.evaluate.ngrams import sari, sentence_bleu

SOURCE = "about 95 species are currently accepted ."
REFERENCES = [
    "about 95 species are currently known .",
    "about 95 species are now accepted .",
    "95 species are now accepted .",
]


def test_bleu_by_hand():
    reference = ["the", "cat", "sat", "on", "the", "mat"]
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 threes, no four: no smoothing
    text = ["the", "cat", "is", "on", "the", "mat"]
    assert sentence_bleu(text, [reference], 1) == pytest.approx(5 / 6)
    assert sentence_bleu(text, [reference], 2) == pytest.approx((5 / 6 * 3 / 5) ** 0.5)
    assert sentence_bleu(text, [reference], 4) == 0
    assert sentence_bleu(reference, [["dog"], reference], 4) == pytest.approx(1)
    short = ["the", "cat"]  # the brevity penalty: e to the power of 1 - 6 / 2
    assert sentence_bleu(short, [reference], 1) == pytest.approx(2.718281828459045**-2)
    assert sentence_bleu([], [reference], 1) == sentence_bleu(text, [[]], 1) == 0


@pytest.mark.parametrize("orders", [1, 2, 4])
def test_bleu_is_that_of_nltk(orders):
    from nltk.translate.bleu_score import sentence_bleu as other

    weights = (1 / orders,) * orders
    texts = [*REFERENCES, SOURCE, "95 95 species are now now known . and more", "about 95 you now get in ."]
    for text in texts:
        for references in (REFERENCES[:1], REFERENCES):
            split = [one.split() for one in references]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sequences that no reference has
                theirs = other(split, text.split(), weights)
            assert sentence_bleu(text.split(), split, orders) == pytest.approx(theirs, abs=1e-9)


def test_sari_has_the_published_value_of_its_documented_example():
    # https://huggingface.co/spaces/evaluate-metric/sari
    text = "about 95 you now get in ."
    found = sari(SOURCE.split(), text.split(), [one.split() for one in REFERENCES])
    assert found == pytest.approx(26.953601953601954)


def test_sari_rewards_what_the_references_do():
    source, reference = ["a", "very", "big", "dog", "ran"], ["a", "dog", "ran"]
    assert sari(source, reference, [reference]) == pytest.approx(100)
    assert sari(source, source, [source]) == pytest.approx(100)
    copied, nothing = sari(source, source, [reference]), sari(source, [], [reference])
    assert 0 < copied < 100 and 0 < nothing < 100
    # of single words: kept a, dog, ran of five; nothing deleted; nothing to add
    assert sari(["a", "b"], ["a", "c"], [["a", "c"]]) == pytest.approx(100)
    assert sari(["a"], ["b"], [["a"]]) == pytest.approx(100 * (0 + 0 + 0 + 3 * 3) / 12)
