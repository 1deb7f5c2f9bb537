# ruff: noqa: RUF001  (texts of many scripts)
"""Property: are generated texts scored as by hand, and as the libraries themselves say?"""

import json
import math
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import get_args

import pytest

from moesaic.errors import DataError, RecipeError
from moesaic.evaluate.texts import (
    DEFINITIONS,
    Wanted,
    bleu,
    exact_match,
    f1,
    require_packages,
    rouge,
    score_texts,
    truth,
)
from moesaic.sections.texts import TextMetric

CAT, SAT = "the cat is on the mat", "the cat sat on the mat"


def test_an_exact_match_has_the_same_words():
    assert exact_match("  The cat's  hat, an  Apple!\n", ["Cats hat apple"]) == 1
    assert exact_match("The Cat!", ["dog", "a cat"]) == 1 and exact_match("cats", ["cat"]) == 0


def test_f1_is_that_of_the_best_reference():
    # cat is on mat; cat sat on mat: three of four words shared
    assert f1(CAT, ["dog", SAT]) == pytest.approx(0.75)
    assert f1("a b b", ["b c"]) == pytest.approx(2 * 1 / (2 + 2))  # the article counts nowhere
    assert f1("b", ["b c d"]) == pytest.approx(2 * 1 / (1 + 3))
    assert (f1("", ["the"]), f1("", ["cat"]), f1("cat", [""])) == (0, 0, 0)


def test_rouge_by_hand():
    # Words: 5 of 6 on both sides. Pairs: the-cat, on-the, the-mat, 3 of 5. The longest common subsequence: 5 of 6.
    assert rouge(CAT, ["dog", SAT]) == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})
    assert rouge("runs", ["running"])["rouge1"] == 1, "stemmed"


def test_bleu_by_hand():
    # n-grams 9 of 10, 6 of 8, 3 of 6 and 1 of 4; no brevity penalty
    texts, references = [CAT, "hello there big world"], [[SAT], ["hello there big world", "hi"]]
    assert bleu(texts, references) == pytest.approx(
        100 * math.exp(sum(map(math.log, (9 / 10, 6 / 8, 3 / 6, 1 / 4))) / 4)
    )
    assert bleu([SAT], [[SAT]]) == pytest.approx(100)
    assert bleu([SAT, CAT], [[SAT], [SAT, CAT]]) == pytest.approx(100), (
        "a row's second reference, where another has one"
    )


def test_bleu_is_sacrebleus_own_over_words():
    from sacrebleu import corpus_bleu

    texts = ["it is raining isnt it", "two and two is four"]
    references = [["its raining isnt it", "it rains doesnt it"], ["two and two are four", "2 + 2 is 4"]]
    streams = [list(stream) for stream in zip(*references, strict=True)]
    own = corpus_bleu(texts, streams, tokenize="none").score
    assert bleu(["It is raining, isn't it?", "Two and two is four."], references) == pytest.approx(own)
    assert bleu(texts, references) == pytest.approx(own) and own > 1


SAME = {
    "English": ("The cat sat on the mat.", "A dog"),
    "one word": ("Paris", "Rome"),
    "articles": ("The", "A"),
    "a number": ("-5", "5"),
    "Russian": ("Столица Франции — Париж.", "Столица Франции — Рим."),
    "Chinese": ("今天天气很好。", "今天下雨。"),
    "Arabic": ("عاصمة فرنسا باريس", "عاصمة فرنسا روما"),
    "Hindi": ("फ्रांस की राजधानी पेरिस है", "फ्रांस की राजधानी रोम है"),
    "Greek": ("Η πρωτεύουσα είναι το Παρίσι", "Η πρωτεύουσα είναι η Ρώμη"),
    "Thai": ("สวัสดีครับ", "ลาก่อน"),
    "emoji": ("👍", "👎"),
    "punctuation": ("?!", "..."),
}


@pytest.mark.parametrize(("text", "other"), SAME.values(), ids=SAME)
def test_a_text_that_equals_its_reference_has_the_best_scores_and_no_other_text_has(text, other):
    best = {name: 100.0 if name == "bleu" else 1.0 for name in DEFINITIONS}
    wanted = [Wanted((text,), (other,))]
    apart = ("trace", "sari")  # one compares characters, one the prompt
    metrics = [metric for metric in get_args(TextMetric) if metric not in apart]
    for form in ("NFC", "NFD"):
        found = score_texts([unicodedata.normalize(form, text)], wanted, metrics)
        assert found.pop("truth_margin") > 0
        assert found == pytest.approx({name: best[name] for name in found})
    for wrong in ("", other):
        lost = score_texts([wrong], wanted, metrics)
        assert lost.keys() - {"truth_margin"} == found.keys()
        assert all(lost[name] < best[name] for name in found if name not in ("truth_rows", "rouge1"))


NUMBERS = [("-5", "5"), ("3.5", "35"), ("1/2", "12"), ("10:30", "1030"), ("$1.20", "120"), ("C++", "C"), ("a-b", "ab")]


@pytest.mark.parametrize(("said", "truth"), [*NUMBERS, ("x > 3", "x < 3"), ("5%", "5"), ("-$3", "$3"), ("٣٫٥", "٣٥")])
def test_another_number_is_no_match(said, truth):
    assert exact_match(said, [truth]) == 0 and f1(said, [truth]) < 1


def test_a_score_that_the_references_are_too_short_for_is_absent():
    assert score_texts(["Paris"], [Wanted(("Paris",))], ["rouge", "bleu"]).keys() == {"rouge1", "rougeL"}
    longer = [Wanted(("Paris",)), Wanted((SAT,))]
    assert score_texts(["Paris", SAT], longer, ["rouge", "bleu"]) == pytest.approx(
        {"rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 100}
    )


def test_the_scores_of_trace_are_of_pieces_between_blanks_and_dots_and_an_empty_text_counts():
    wanted = [Wanted(("3.5 owls sat.",)), Wanted(("one two three four five",)), Wanted(("no",))]
    found = score_texts(["3 5 owls sat", "one two three four six", ""], wanted, ["trace"])
    # row 1: the same four pieces, but not the same characters; row 2: 4/5, 3/4, 2/3, 1/2
    assert found["trace_match"] == 0 and found["trace_bleu1"] == pytest.approx((1 + 4 / 5 + 0) / 3)
    assert found["trace_bleu4"] == pytest.approx((1 + (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25) / 3)
    assert score_texts(["no", "No"], [Wanted(("yes", "no"))] * 2, ["trace"])["trace_match"] == 0.5


def test_sari_reads_the_prompt():
    kept = Wanted(("a dog ran",), (), "A very big dog ran.")
    assert score_texts(["A dog ran."], [kept], ["sari"])["sari"] == pytest.approx(100)
    assert score_texts(["A very big dog ran."], [kept], ["sari"])["sari"] < 100


def test_truth_is_likeness_to_right_answers_over_wrong_ones():
    row = Wanted(("no", "it is not true"), ("yes", "it is true"))
    # With "it is not true" 4 of 4 words; with "it is true" 3 of 4 and 3 of 3.
    assert truth("it is not true", row) == pytest.approx(1 - 2 * 3 / 7)
    assert truth("it is true", row) < 0 == truth("bananas", row)


def test_scores_are_means_over_rows_and_truth_over_those_with_wrong_answers():
    wanted = [Wanted(("Paris",), ("Rome",)), Wanted(("four",)), Wanted(("blue", "azure"), ("green",))]
    found = score_texts(["Paris.", "five", "green"], wanted)
    assert found["exact_match"] == found["f1"] == found["rouge1"] == pytest.approx(1 / 3)
    assert (found["truth"], found["truth_margin"], found["truth_rows"]) == (0.5, 0.0, 2)
    pairs_of_words = {"rouge2", "bleu", "trace_bleu4"}  # no reference has any
    assert found.keys() == DEFINITIONS.keys() - pairs_of_words
    assert score_texts(["four"], [Wanted(("four",))], ["f1"]) == {"f1": 1.0}


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="no row has wrong answers"):
        score_texts(["a"], [Wanted(("a",))], ["truth"])
    with pytest.raises(DataError, match="no references for a text"):
        Wanted(())
    with pytest.raises(RecipeError, match="texts and rows do not match"):
        score_texts([], [])
    with pytest.raises(RecipeError, match="got 1, 2"):
        score_texts(["a"], [Wanted(("a",))] * 2)


def test_right_answers_of_a_real_set_are_truer_than_its_wrong_ones(shared: Path) -> None:
    lines = (shared / "data" / "truthfulqa" / "test.jsonl").read_text().splitlines()[:60]
    rows = [json.loads(line) for line in lines]
    texts = {
        "right": [row["correct_answers"][0] for row in rows],
        "wrong": [row["incorrect_answers"][0] for row in rows],
    }
    both = [i for i, row in enumerate(rows) if len(row["correct_answers"]) > 1 and len(row["incorrect_answers"]) > 1]
    wanted = [Wanted(tuple(rows[i]["correct_answers"][1:]), tuple(rows[i]["incorrect_answers"][1:])) for i in both]
    scores = {kind: score_texts([some[i] for i in both], wanted, ["truth"])["truth"] for kind, some in texts.items()}
    assert scores["right"] > scores["wrong"] + 0.2


@pytest.mark.parametrize(
    ("module", "metric", "package"),
    [
        ("rouge_score", "rouge", "rouge-score"),
        ("rouge_score", "truth", "rouge-score"),
        ("sacrebleu", "bleu", "sacrebleu"),
    ],
)
def test_a_metric_without_its_package_is_refused(module, metric, package, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    require_packages(["exact_match", "f1"])
    with pytest.raises(DataError, match=rf"{package} is not installed.*{metric}.*pip install 'moesaic\[metrics\]'"):
        require_packages(["exact_match", metric])


@pytest.mark.slow
def test_the_libraries_are_imported_when_they_are_asked_for():
    script = "import sys, moesaic.evaluate.texts; print({'rouge_score', 'sacrebleu', 'nltk'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
