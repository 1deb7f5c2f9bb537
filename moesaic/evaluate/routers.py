"""How well a router tells the domains apart: accuracy, confusion, utilisation, calibration.

Knows nothing about models or text: labels, choices and probabilities come in. -1 is the base, what abstaining chooses.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from moesaic.errors import DataError
from moesaic.ops.metrics import f1_by_label, of_a_share

BASE = "base"
BINS = 10


def router_report(
    labels: list[int],
    chosen: list[int],
    probabilities: Float[np.ndarray, "n e"],
    names: list[str],
    lengths: list[int] | None = None,
) -> dict[str, Any]:
    """Report on a router's choices for labelled rows, ready for JSON; `lengths` (tokens read) adds `by_length`.

    `macro_f1` is the mean F1 of the classes that occur among the labels: abstaining costs recall, and is no class of
    its own unless it was right on some row. `utilisation` is the share of rows per expert, its entropy in nats:
    0 when one takes every row, ln e when all e share evenly; `utilisation_evenness` is that over ln e, 0 to 1 (of one
    expert alone 1), with the base among the e where some row abstains.
    """
    true, picked = np.array(labels, dtype=np.int64), np.array(chosen, dtype=np.int64)
    _require_rows(true, picked, probabilities, len(names))
    right = true == picked

    counts = np.zeros((len(names) + 1,) * 2, dtype=np.int64)  # the base's row and column are the last: index -1
    np.add.at(counts, (true, picked), 1)
    occurring, selected = counts.sum(1), counts.sum(0)
    f1 = f1_by_label(np.concatenate([occurring, selected, [0], counts.diagonal()]).astype(np.float64))

    known = [*names, BASE]
    rows, columns = (known if total[-1] else names for total in (occurring, selected))
    shares = selected[: len(columns)] / len(true)
    used = shares[shares > 0]
    bins = reliability(labels, chosen, probabilities)
    report: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "macro_f1": float(f1[occurring > 0].mean()),
        "confusion": {"rows": rows, "columns": columns, "counts": counts[: len(rows), : len(columns)].tolist()},
        "utilisation": dict(zip(columns, shares.tolist(), strict=True)),
        "utilisation_entropy": (entropy := abs(float(-(used * np.log(used)).sum()))),
        "utilisation_evenness": entropy / math.log(len(columns)) if len(columns) > 1 else 1.0,
        "calibration_error": calibration_error(bins),
        "reliability": bins,
    }
    if lengths is not None:
        report["by_length"] = accuracy_by_length(labels, chosen, lengths)
    return report


def reliability(
    labels: list[int], chosen: list[int], probabilities: Float[np.ndarray, "n e"], bins: int = BINS
) -> list[dict[str, Any]]:
    """Accuracy against confidence, rows in bins of equal width of their confidence.

    Confidence is the probability of the chosen expert; rows on which the router abstained have none and are left out.
    Each entry: {from, below (of the last, 1 belongs to it), rows, confidence and accuracy (means; None: no rows),
    interval (of the accuracy, 95%)}.
    """
    true, picked = np.array(labels, dtype=np.int64), np.array(chosen, dtype=np.int64)
    claims = picked >= 0
    confidence = probabilities[claims, picked[claims]].astype(np.float64)
    right = (true == picked)[claims]
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    report = []
    for number in range(bins):
        inside = index == number
        sure, correct = (float(of[inside].mean()) if inside.any() else None for of in (confidence, right))
        edges = {"from": number / bins, "below": (number + 1) / bins}
        rows = int(inside.sum())
        interval = [*of_a_share(float(right[inside].sum()), rows)] if rows else None
        report.append({**edges, "rows": rows, "confidence": sure, "accuracy": correct, "interval": interval})
    return report


def calibration_error(bins: list[dict[str, Any]]) -> float | None:
    """Expected calibration error: the mean over rows of |accuracy - confidence| of the row's bin of `reliability`.

    None where no bin has a row. Guo et al. (arXiv 1706.04599), equation 3.
    """
    rows = sum(entry["rows"] for entry in bins)
    off = sum(entry["rows"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins if entry["rows"])
    return off / rows if rows else None


def accuracy_by_length(
    labels: list[int], chosen: list[int], lengths: list[int], edges: Sequence[int] = (8, 16, 32, 64, 128)
) -> list[dict[str, Any]]:
    """Accuracy of rows by the number of tokens that the router read, in bins between `edges`.

    Each entry: {from, below (None: no limit), rows, accuracy (None: no rows)}.
    """
    if not len(labels) == len(chosen) == len(lengths):
        raise DataError("every row needs its label, choice and length", got=[len(labels), len(chosen), len(lengths)])
    right = np.array(labels) == np.array(chosen)
    index = np.searchsorted(np.array(edges), np.array(lengths), side="right")
    limits: list[int | None] = [0, *edges, None]
    report = []
    for number, (lowest, below) in enumerate(pairwise(limits)):
        inside = right[index == number]
        accuracy = float(inside.mean()) if len(inside) else None
        report.append({"from": lowest, "below": below, "rows": len(inside), "accuracy": accuracy})
    return report


def _require_rows(
    labels: Int[np.ndarray, " n"], chosen: Int[np.ndarray, " m"], probabilities: np.ndarray, experts: int
) -> None:
    shape = (len(labels), experts)
    if not len(labels) or len(chosen) != len(labels) or probabilities.shape != shape:
        got = f"{len(labels)} labels, {len(chosen)} choices, probabilities {probabilities.shape}"
        raise DataError("every row needs its label, choice and probabilities", expected=f"{shape}, at least 1", got=got)
    for what, values in (("label", labels), ("choice", chosen)):
        if values.min() < -1 or values.max() >= experts:
            extremes = [int(values.min()), int(values.max())]
            raise DataError(f"a {what} is no expert's number", expected=f"-1 (base) to {experts - 1}", got=extremes)
    if not (probabilities.min() >= 0 and probabilities.sum(1).max() <= 1 + 1e-3):
        raise DataError("these are not probabilities", expected="rows >= 0 that sum to at most 1", got="other numbers")
