"""Scores of generated texts against references: exact match, F1 of words, ROUGE, BLEU, TRACE's, SARI, and truth.

Knows nothing about models or prompts. All scores split words by `data.words`, so they hold for every script. ROUGE is
Google's rouge-score, BLEU is sacreBLEU: two packages of the extra `metrics`, imported where a recipe asks for them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, get_args

from moesaic.data.words import content_words, words
from moesaic.errors import DataError, RecipeError
from moesaic.evaluate.ngrams import sari, sentence_bleu
from moesaic.sections.texts import TextMetric

ROUGE = ("rouge1", "rouge2", "rougeL")
MODULES: dict[TextMetric, str] = {"rouge": "rouge_score", "bleu": "sacrebleu", "truth": "rouge_score"}
FIELD = "evaluate.generate.metrics"
EXTRA = "pip install 'moesaic[metrics]'"

DEFINITIONS = {
    "exact_match": "share of texts with the words of a reference; without case, punctuation and English articles, but "
    "with the signs of numbers; mean over rows",
    "f1": "F1 of the words that a text shares with its best reference, normalised as for exact_match; mean over rows",
    "rouge1": "ROUGE-1, the F-measure of words (English ones stemmed) with the best reference; mean over rows",
    "rouge2": "ROUGE-2, the F-measure of pairs of words; mean over rows with a reference of two words or more",
    "rougeL": "ROUGE-L, the F-measure of the longest common sequence of words; mean over rows",
    "bleu": "BLEU of all texts together, 0 to 100, by words without case; absent where no reference has four words",
    "trace_match": "share of texts that are a reference character by character, the accuracy of TRACE",
    "trace_bleu1": "BLEU-1 of each text, 0 to 1, by pieces between blanks and dots, as TRACE has it; mean over rows",
    "trace_bleu4": "BLEU-4 of each text, the same, without smoothing: 0 where no four pieces in a row are shared",
    "sari": "SARI, 0 to 100: how well a text keeps, deletes and adds words of its prompt, as the references do; mean "
    "over rows",
    "truth": "share of texts that are nearer, by ROUGE-L, to a right answer than to every wrong one",
    "truth_margin": "mean ROUGE-L with the nearest right answer minus that with the nearest wrong one",
    "truth_rows": "rows with wrong answers, over which truth is the mean",
}
"""The definition of each score, for people."""

BLEU_WORDS = 4
"""Words of the longest sequence that BLEU counts."""


@dataclass(frozen=True)
class Wanted:
    """References for a generated text: right answers, and known wrong ones, which only `truth` reads.

    `source`: the prompt, which only `sari` reads.
    """

    correct: tuple[str, ...]
    incorrect: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not self.correct:
            raise DataError("no references for a text", field="correct", expected="one answer or more")


def require_packages(metrics: Iterable[TextMetric]) -> None:
    for metric in metrics:
        module = MODULES.get(metric)
        if module and find_spec(module) is None:
            package = module.replace("_", "-")
            raise DataError(f"{package} is not installed, which scores {metric}", field=FIELD, hint=EXTRA)


def score_texts(
    texts: Sequence[str], wanted: Sequence[Wanted], metrics: Sequence[TextMetric] = get_args(TextMetric)
) -> dict[str, float]:
    """Means over the texts, from 0 to 1; BLEU is of all texts together, from 0 to 100.

    An empty text has 0 in each, and counts. `rouge` gives rouge1, rouge2 and rougeL; `trace` gives trace_match,
    trace_bleu1 and trace_bleu4; `truth` gives `truth`, `truth_margin` and `truth_rows`: see `truth`. A
    score that the references are too short for is absent: rouge2 under two words, bleu and trace_bleu4 under four.
    Raises DataError where `truth` is wanted and no row has wrong answers.
    """
    if len(texts) != len(wanted) or not texts:
        expected, got = "a text for each row, and one row or more", f"{len(texts)}, {len(wanted)}"
        raise RecipeError("texts and rows do not match", field="texts", expected=expected, got=got)
    rows = list(zip(texts, wanted, strict=True))
    scores: dict[str, float] = {}
    if "exact_match" in metrics:
        scores["exact_match"] = mean([exact_match(text, row.correct) for text, row in rows])
    if "f1" in metrics:
        scores["f1"] = mean([f1(text, row.correct) for text, row in rows])
    if "rouge" in metrics:
        found = [rouge(text, row.correct) for text, row in rows]
        scores |= {kind: mean(some) for kind in ROUGE if (some := [one[kind] for one in found if kind in one])}
    if "bleu" in metrics and any(len(words(one)) >= BLEU_WORDS for row in wanted for one in row.correct):
        scores["bleu"] = bleu(texts, [row.correct for row in wanted])
    if "trace" in metrics:
        scores["trace_match"] = mean([float(text in row.correct and text != "") for text, row in rows])
        split = [(pieces(text), [pieces(one) for one in row.correct]) for text, row in rows]
        for orders in (1, BLEU_WORDS):
            if any(len(one) >= orders for _, others in split for one in others):
                scores[f"trace_bleu{orders}"] = mean([sentence_bleu(own, others, orders) for own, others in split])
    if "sari" in metrics:
        each = [(words(row.source), words(text), [words(one) for one in row.correct]) for text, row in rows]
        scores["sari"] = mean([sari(*one) for one in each])
    if "truth" in metrics:
        margins = [truth(text, row) for text, row in rows if row.incorrect]
        if not margins:
            hint = "name them incorrect_answers in the rows, or leave truth out"
            raise DataError("no row has wrong answers, which truth needs", field="incorrect", hint=hint)
        scores["truth"] = mean([float(margin > 0) for margin in margins])
        scores |= {"truth_margin": mean(margins), "truth_rows": float(len(margins))}
    return scores


def pieces(text: str) -> list[str]:
    """The pieces of a text between blanks and dots, as TRACE (arXiv 2310.06762) counts words."""
    return [piece for piece in re.split(r"[\s.]", text) if piece]


def exact_match(text: str, references: Sequence[str]) -> float:
    """1 where the text has the words of a reference, apart from articles (after SQuAD, arXiv 1606.05250)."""
    return float(content_words(text) in [content_words(reference) for reference in references])


def f1(text: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the words, with the best of the references."""
    return max(_f1(content_words(text), content_words(reference)) for reference in references)


def _f1(some: list[str], others: list[str]) -> float:
    if not some or not others:
        return float(some == others)
    shared = (Counter(some) & Counter(others)).total()
    return 2 * shared / (len(some) + len(others))


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, each with the best of the references.

    ROUGE-2 is absent where no reference has two words.
    """
    scores: Mapping[str, Any] = _scorer().score_multi(list(references), text)
    pairs = any(len(words(reference)) > 1 for reference in references)
    return {kind: float(scores[kind].fmeasure) for kind in ROUGE if pairs or kind != "rouge2"}


@cache
def _scorer() -> Any:
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    stem = PorterStemmer().stem

    class Stems(Tokenizer):
        """The words of a text, English ones stemmed if they are long enough, as rouge-score's own tokenizer does."""

        def tokenize(self, text: str) -> list[str]:
            return [stem(word) if len(word) > 3 and word.isascii() and word.isalpha() else word for word in words(text)]

    return RougeScorer([*ROUGE], tokenizer=Stems())


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU by sacreBLEU (exponential smoothing), 0 to 100, over `words`; rows may have unequal references."""
    from sacrebleu.metrics.bleu import BLEU

    split = [[" ".join(words(one)) for one in some] for some in references]
    most = max(len(some) for some in split)
    streams = [[some[number] if number < len(some) else None for some in split] for number in range(most)]
    given = [" ".join(words(text)) for text in texts]
    score = BLEU(tokenize="none", force=True).corpus_score(given, streams)  # type: ignore[arg-type]  # None: no more
    return min(100.0, float(score.score))


def truth(text: str, row: Wanted) -> float:
    """ROUGE-L with the nearest right answer minus that with the nearest wrong one; above 0 the text counts as true.

    TruthfulQA (arXiv 2109.07958), section 3.2, calls a text true by its similarity to reference answers where no judge
    reads it. The score measures likeness in wording: a text that denies a wrong answer in its own words is near to that
    answer, a right one in other words is near to none, an empty or evasive one is not true. Compare contenders on the
    same rows; do not read the score as the share of true statements.
    """
    return max(rouge_l(text, row.correct)) - max(rouge_l(text, row.incorrect))


def rouge_l(text: str, others: Sequence[str]) -> list[float]:
    return [float(_scorer().score(other, text)["rougeL"].fmeasure) for other in others]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
