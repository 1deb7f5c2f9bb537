"""How well a router tells text of no domain: the share that it leaves to the base, and how its probabilities rank it.

Knows nothing about models or text: the probability of the base for each row and the rows on which a router abstained
come in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from moesaic.errors import DataError
from moesaic.ops.metrics import auroc

ANSWERED_LIMIT = 0.10
"""The share of text of no domain that experts may answer."""
ABSTAINED_LIMIT = 0.02
"""The share of the domains' own rows that may be left to the base."""


@dataclass(frozen=True)
class Doubt:
    """A router's doubt on each row: the probability that no expert fits, and whether it abstained."""

    none: Float[np.ndarray, " n"]
    abstained: Bool[np.ndarray, " n"]


def outside_report(inside: Doubt, kinds: Mapping[str, Doubt]) -> dict[str, Any]:
    """Report on text of no domain, all of it and by kind, beside test rows of domains (`inside`); ready for JSON.

    `auroc`: the probability that a row of no domain has more doubt than a row of a domain, ties counted half.
    """
    if not len(inside.none) or not kinds or not all(len(one.none) for one in kinds.values()):
        got = {"inside": len(inside.none)} | {kind: len(one.none) for kind, one in kinds.items()}
        raise DataError("rows of domains and of each kind of other text are needed", expected="at least 1", got=got)
    every = Doubt(*(np.concatenate([getattr(one, key) for one in kinds.values()]) for key in ("none", "abstained")))

    def figures(doubt: Doubt) -> dict[str, Any]:
        shares = {"rows": len(doubt.none), "abstained": float(doubt.abstained.mean())}
        return {**shares, "auroc": auroc(doubt.none, inside.none)}

    return {
        **figures(every),
        "inside": {"rows": len(inside.none), "abstained": float(inside.abstained.mean())},
        "kinds": {kind: figures(one) for kind, one in kinds.items()},
    }


def broken_limits(router: Mapping[str, Any]) -> list[str]:
    """Sentences on the limits that the report on a router breaks; none where it reports nothing of the kind."""
    found = []
    if outside := router.get("outside"):
        answered, silent = 1 - outside["abstained"], outside["inside"]["abstained"]
        if answered > ANSWERED_LIMIT:
            found.append(
                f"Experts answer {answered:.1%} of {outside['rows']:,} texts of no domain; the limit is "
                f"{ANSWERED_LIMIT:.0%}."
            )
        if silent > ABSTAINED_LIMIT:
            found.append(
                f"The router leaves {silent:.1%} of test rows to the base; the limit is {ABSTAINED_LIMIT:.0%}."
            )
    return found
