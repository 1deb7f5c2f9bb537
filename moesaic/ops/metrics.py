"""Classification metrics from sums over rows, as scikit-learn defines them, for many resamples at once.

An answer of -1 is none of the labels. Knows nothing about tasks.
"""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from moesaic.sections.glue import Metric


def tallies(truth: Int[np.ndarray, " n"], said: Int[np.ndarray, " n"], labels: int) -> Float[np.ndarray, "n c"]:
    """One-hot counts of each row, c = 3 labels + 1: the true label, the answer (last column: none), and both."""
    true = np.eye(labels)[truth]
    chosen = np.eye(labels + 1)[said]
    return np.concatenate([true, chosen, true * chosen[:, :labels]], 1)


def metric(name: Metric, sums: Float[np.ndarray, "*r c"], positive: int | None = None) -> Float[np.ndarray, "*r"]:
    """Compute the metric of rows whose tallies add up to `sums`; 0 instead of a division by 0, as in scikit-learn.

    accuracy: share of right rows. f1: of the label `positive`; by default with two labels the F1 of the second; with
    more, the mean over labels (macro).
    matthews: the correlation coefficient of Gorodkin (2004), equation 8; with two labels it is Matthews'.
    """
    true, said, both = _parts(sums)
    rows, right = np.asarray(true.sum(-1)), np.asarray(both.sum(-1))
    if name == "accuracy":
        return _ratio(right, rows)
    if name == "f1":
        scores = f1_by_label(sums)
        if positive is None and scores.shape[-1] > 2:
            return np.asarray(scores.mean(-1))
        return np.asarray(scores[..., 1 if positive is None else positive])
    covariance = np.asarray(right * rows - (true * said[..., :-1]).sum(-1))
    spread = (rows**2 - (true**2).sum(-1)) * (rows**2 - (said**2).sum(-1))
    return _ratio(covariance, np.asarray(np.sqrt(np.maximum(spread, 0))))


def f1_by_label(sums: Float[np.ndarray, "*r c"]) -> Float[np.ndarray, "*r l"]:
    """F1 of every label, whose mean is the macro-F1; 0 for a label that neither the truth nor an answer contains."""
    true, said, both = _parts(sums)
    return _ratio(2 * both, true + said[..., :-1])


def _parts(sums: Float[np.ndarray, "*r c"]) -> list[np.ndarray]:
    labels = (sums.shape[-1] - 1) // 3
    return np.split(sums, [labels, 2 * labels + 1], -1)


def _ratio(above: Float[np.ndarray, "*r"], below: Float[np.ndarray, "*r"]) -> Float[np.ndarray, "*r"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def auroc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> float:
    """The probability that a score of `inside` is above one of `outside`; a tie counts as half."""
    both = np.concatenate([inside, outside])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n, m = len(inside), len(outside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def of_a_share(hits: float, rows: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share of independent rows, which also holds for few rows and near 0 or 1."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = hits / rows, z * z / rows
    middle, half = share + weight / 2, z * math.sqrt(share * (1 - share) / rows + weight / rows / 4)
    return max(0.0, (middle - half) / (1 + weight)), min(1.0, (middle + half) / (1 + weight))
