"""Scores from sequences of words: BLEU of one text, and SARI of a simplified one.

Knows nothing about how texts are split into words.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

NGram = tuple[str, ...]
ORDERS = 4
"""Words of the longest sequence that SARI counts."""


def ngrams(words: Sequence[str], order: int) -> Counter[NGram]:
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def sentence_bleu(words: Sequence[str], references: Sequence[Sequence[str]], orders: int) -> float:
    """BLEU of one text, 0 to 1, from sequences of 1 to `orders` words, without smoothing (Papineni et al., 2002).

    0 where no sequence of one of these lengths is that of a reference, and so for every text that is too short.
    """
    logs = 0.0
    for order in range(1, orders + 1):
        own, known = ngrams(words, order), Counter[NGram]()
        for reference in references:
            known |= ngrams(reference, order)
        shared = (own & known).total()
        if not shared:
            return 0.0
        logs += math.log(shared / own.total())
    nearest = min((len(one) for one in references), key=lambda length: (abs(length - len(words)), length))
    return math.exp(logs / orders + min(0.0, 1 - nearest / len(words)))


def sari(source: Sequence[str], words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """SARI, 0 to 100: how well a text keeps, deletes and adds what its references do (Xu et al., 2016).

    The mean over sequences of 1 to 4 words of the F1 of those kept, the precision of those deleted and the F1 of those
    added; what neither text nor references do counts as done well.
    """
    parts = [part for order in range(1, ORDERS + 1) for part in _operations(source, words, references, order)]
    return 100 * sum(parts) / len(parts)


def _operations(
    source: Sequence[str], words: Sequence[str], references: Sequence[Sequence[str]], order: int
) -> Iterator[float]:
    """The scores of keeping, deleting and adding sequences of one length."""
    times, known = len(references), Counter[NGram]()
    for reference in references:
        known += ngrams(reference, order)
    # Repeated as often as there are references, so that the share of them that agrees is counted.
    before, after = (
        Counter({one: count * times for one, count in ngrams(some, order).items()}) for some in (source, words)
    )
    kept, keepable = before & after, before & known
    good = kept & known
    precision = _mean([good[one] / kept[one] for one in kept])
    recall = good.total() / keepable.total() if keepable else 1.0
    yield _harmonic(precision, recall)
    deleted = before - after
    yield _mean([(deleted - known)[one] / deleted[one] for one in deleted])
    added, wanted = after.keys() - before.keys(), known.keys() - before.keys()
    right = len(added & wanted)
    yield _harmonic(right / len(added) if added else 1.0, right / len(wanted) if wanted else 1.0)


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares) if shares else 1.0


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
