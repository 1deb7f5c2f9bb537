"""Scores of generated texts against references: exact match, F1 of words, ROUGE, BLEU, and a truth score.

Knows nothing about models or prompts. ROUGE is Google's rouge-score with its stemmer, BLEU is sacreBLEU: two packages
of the extra `metrics`, imported where a recipe asks for their scores.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, get_args

from moesaic.errors import DataError, RecipeError
from moesaic.sections.texts import TextMetric

ROUGE = ("rouge1", "rouge2", "rougeL")
MODULES: dict[TextMetric, str] = {"rouge": "rouge_score", "bleu": "sacrebleu", "truth": "rouge_score"}
FIELD = "evaluate.generate.metrics"
EXTRA = "pip install 'moesaic[metrics]'"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Wanted:
    """References for a generated text: right answers, and known wrong ones, which only `truth` reads."""

    correct: tuple[str, ...]
    incorrect: tuple[str, ...] = ()

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

    `rouge` gives rouge1, rouge2 and rougeL; `truth` gives `truth`, `truth_margin` and `truth_rows`: see `truth`.
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
        scores |= {kind: mean([one[kind] for one in found]) for kind in ROUGE}
    if "bleu" in metrics:
        scores["bleu"] = bleu(texts, [row.correct for row in wanted])
    if "truth" in metrics:
        margins = [truth(text, row) for text, row in rows if row.incorrect]
        if not margins:
            hint = "name them incorrect_answers in the rows, or leave truth out"
            raise DataError("no row has wrong answers, which truth needs", field="incorrect", hint=hint)
        scores["truth"] = mean([float(margin > 0) for margin in margins])
        scores |= {"truth_margin": mean(margins), "truth_rows": float(len(margins))}
    return scores


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles or white space beyond single blanks: as SQuAD (arXiv 1606.05250)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, references: Sequence[str]) -> float:
    return float(normalised(text) in {normalised(reference) for reference in references})


def f1(text: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of normalised words, with the best of the references."""
    return max(_f1(normalised(text).split(), normalised(reference).split()) for reference in references)


def _f1(words: list[str], others: list[str]) -> float:
    if not words or not others:
        return float(words == others)
    shared = (Counter(words) & Counter(others)).total()
    return 2 * shared / (len(words) + len(others))


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, each with the best of the references."""
    scores: Mapping[str, Any] = _scorer().score_multi(list(references), text)
    return {kind: float(scores[kind].fmeasure) for kind in ROUGE}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([*ROUGE], use_stemmer=True)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU of sacreBLEU's defaults (13a, exponential smoothing), 0 to 100; rows may have unequal references."""
    from sacrebleu.metrics.bleu import BLEU

    most = max(len(some) for some in references)
    streams = [[some[number] if number < len(some) else None for some in references] for number in range(most)]
    return float(BLEU().corpus_score(list(texts), streams).score)  # type: ignore[arg-type]  # None: a row has no more


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
