"""Metrics of classification from sums over rows, so that resampled sums give the metric of resampled rows.

As scikit-learn defines them, many resamples at once. Knows nothing about tasks. An answer of -1 is none of the labels.
"""

import numpy as np
from jaxtyping import Float, Int

from moesaic.sections.glue import Metric


def tallies(truth: Int[np.ndarray, " n"], said: Int[np.ndarray, " n"], labels: int) -> Float[np.ndarray, "n c"]:
    """What a row adds to the sums: by label, true, said (the last column: none of them), and both.

    c = 3 labels + 1.
    """
    true = np.eye(labels)[truth]
    chosen = np.eye(labels + 1)[said]
    return np.concatenate([true, chosen, true * chosen[:, :labels]], 1)


def metric(name: Metric, sums: Float[np.ndarray, "*r c"]) -> Float[np.ndarray, "*r"]:
    """The metric of rows whose tallies add up to `sums`; 0 where it would divide by 0, as in scikit-learn.

    accuracy: share of right rows. f1: of two labels that of the second; of more, the mean over the labels (macro).
    matthews: the correlation coefficient of Gorodkin (2004), equation 8, of which Matthews' is the case of two labels.
    """
    true, said, both = _parts(sums)
    rows, right = np.asarray(true.sum(-1)), np.asarray(both.sum(-1))
    if name == "accuracy":
        return _ratio(right, rows)
    if name == "f1":
        scores = f1_by_label(sums)
        return np.asarray(scores[..., 1] if scores.shape[-1] == 2 else scores.mean(-1))
    covariance = np.asarray(right * rows - (true * said[..., :-1]).sum(-1))
    spread = (rows**2 - (true**2).sum(-1)) * (rows**2 - (said**2).sum(-1))
    return _ratio(covariance, np.asarray(np.sqrt(np.maximum(spread, 0))))


def f1_by_label(sums: Float[np.ndarray, "*r c"]) -> Float[np.ndarray, "*r l"]:
    """The F1 of every label of such rows, whose mean is the macro-F1; 0 of a label that is neither true nor said."""
    true, said, both = _parts(sums)
    return _ratio(2 * both, true + said[..., :-1])


def _parts(sums: Float[np.ndarray, "*r c"]) -> list[np.ndarray]:
    """Sums of tallies as those of true, said and both."""
    labels = (sums.shape[-1] - 1) // 3
    return np.split(sums, [labels, 2 * labels + 1], -1)


def _ratio(above: Float[np.ndarray, "*r"], below: Float[np.ndarray, "*r"]) -> Float[np.ndarray, "*r"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
