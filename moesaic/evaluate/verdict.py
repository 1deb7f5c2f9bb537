"""The verdict on all contenders from their scores: controls, regret, gap closed, and one sentence on what to use.

Knows nothing about models or devices: scores per row and costs come in, a dict ready for JSON goes out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, TypeVar

import numpy as np

from moesaic.errors import DataError, nearest
from moesaic.evaluate.statistics import ALL, NEGLIGIBLE, UNSEEN, Difference, Judged, Means, bounds
from moesaic.evaluate.units import NATS, Unit, label, size

ORDER = (
    *("base", "expert", "joint", "joint_wide", "average", "uniform"),
    *("random", "keyword", "router", "oracle", "oracle_best"),
)
DERIVED = ("random", "oracle", "oracle_best")
USABLE = {  # from the simplest to serve to the most demanding; the value is the name in a sentence
    "base": "the base alone",
    "average": "the merged average",
    "expert": "the expert {} alone",
    "joint": "the joint expert",
    "joint_wide": "the wide joint expert",
    "router": "the mixture",
}
FEW_GROUPS = 10


class Cost(TypedDict, total=False):
    """Cost of a contender; a missing or None entry is unknown.

    `bytes`: active weights, those read for one token; of a mixture, the base, the router and the chosen experts.
    """

    parameters: int | dict[str, int] | None
    bytes: int | None
    tokens_per_second: float | None


J = TypeVar("J", bound=Judged)


def judge(
    scores: Mapping[str, Judged],
    *,
    select_on: Mapping[str, Judged] | None = None,
    costs: Mapping[str, Cost] | None = None,
    within: float = 0.01,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Judge a mixture and its controls by their scores on the same test rows.

    Names are `base`, `expert:<name>`, `joint`, `joint_wide`, `average`, `uniform`, `keyword` and `router`; any may be
    missing. `select_on`: validation scores of the base and the experts, which choose the best part; without them the
    test rows choose it, and `chosen_on` says so. All intervals are paired percentile bootstraps.
    """
    _require_known(scores)
    contenders = with_derived(scores)
    unit = next(iter(contenders.values())).unit
    rows = Counter(next(iter(contenders.values())).domains)
    trained = Means.of(contenders, ALL, seed, resamples, level)
    unseen = Means.of(contenders, UNSEEN, seed, resamples, level) if UNSEEN in rows else None
    best_single, best_part = _best_parts(scores, select_on)
    first = next(iter(contenders.values()))
    distinct = {*zip(first.domains, first.groups, strict=True)}
    groups = dict(sorted(Counter(domain for domain, _ in distinct).items()))
    return {
        "verdict": _verdict(trained, unseen, costs or {}, within, groups, unit),
        "measure": unit.key,
        "controls": {
            name: _control(name, contenders[name], trained, unseen, (costs or {}).get(name)) for name in contenders
        },
        "best_single": best_single,
        "best_part": best_part,
        "regret": _regret(trained),
        "gap_closed": _gap_closed(trained, best_part),
        "rows": dict(sorted(rows.items())),
        "groups": groups,
        "intervals": {"level": level, "resamples": resamples, "seed": seed, "method": "percentile"},
    }


def with_derived(scores: Mapping[str, J]) -> dict[str, J]:
    """All contenders in the order of tables, those included that follow from the scores of others."""
    contenders = {**scores, **_derived(scores)}
    return {name: contenders[name] for name in sorted(contenders, key=lambda name: ORDER.index(_kind(name)))}


def _require_known(scores: Mapping[str, Judged]) -> None:
    for name in scores:
        kind, _, expert = name.partition(":")
        if kind not in ORDER or kind in DERIVED or (kind == "expert") != bool(expert) or expert in (ALL, UNSEEN):
            known = ["expert:<name>" if kind == "expert" else kind for kind in ORDER if kind not in DERIVED]
            raise DataError("not a contender", expected=", ".join(known), got=name, hint=nearest(name, known))
    if not any(_kind(name) in USABLE for name in scores):
        raise DataError("no contender that could be used", expected=", ".join(USABLE), got=list(scores))


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _experts(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("expert:")]


def _derived(scores: Mapping[str, J]) -> dict[str, J]:
    """Controls that need no model of their own.

    `random`: the mean over the experts of each row, the exact expectation of an even draw. `oracle`: the expert of the
    row's domain, or else the base. `oracle_best`: for each row the best of the base and all experts.
    """
    experts, base = _experts(scores), scores.get("base")
    if not experts:
        return {}
    first, everyone = scores[experts[0]], [scores[name] for name in experts]
    parts = everyone if base is None else [base, *everyone]
    derived: dict[str, J] = {
        "random": first.blended(everyone),
        "oracle_best": first.picked(parts, np.stack([part.merit for part in parts]).argmin(0)),
    }
    numbers = {name.partition(":")[2]: number for number, name in enumerate(experts)}
    own = [numbers.get(domain, -1 if base is None else len(everyone)) for domain in first.domains]
    if min(own) >= 0:
        which = np.array(own)
        derived["oracle"] = first.picked([*everyone, *([] if base is None else [base])], which)
    return derived


def _control(name: str, scores: Judged, trained: Means, unseen: Means | None, cost: Cost | None) -> dict[str, Any]:
    return {
        **scores.figures(),
        "interval": sorted(map(scores.unit.figure, trained.interval(name))),
        "versus_router": _versus_router(name, trained),
        **({} if unseen is None else {"versus_router_unseen": _versus_router(name, unseen)}),
        **({} if cost is None else {"cost": dict(cost)}),
    }


def _versus_router(name: str, means: Means) -> dict[str, Any] | None:
    """The loss of the contender minus that of the mixture; None of the mixture itself, or without one."""
    if name == "router" or "router" not in means.value:
        return None
    return _plain(means.difference(name, "router"))


def _plain(difference: Difference) -> dict[str, Any]:
    return {"difference": difference.mean, "interval": [difference.low, difference.high]}


def _best_parts(
    scores: Mapping[str, Judged], select_on: Mapping[str, Judged] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The best expert, and the better of the best expert and the base: chosen on `select_on`, scored on test rows."""
    experts = _experts(scores)
    parts = [name for name in ("base", *experts) if name in scores]
    judged_on = scores if select_on is None else select_on
    if missing := [name for name in parts if name not in judged_on]:
        raise DataError("no validation scores of a part", expected=parts, got=f"none of {', '.join(missing)}")

    def best(names: list[str]) -> dict[str, Any] | None:
        if not names:
            return None
        name = min(names, key=lambda name: judged_on[name].mean())
        unit = scores[name].unit
        return {
            "name": name,
            unit.key: unit.figure(scores[name].mean()),
            "chosen_on": "test" if select_on is None else "validation",
        }

    return best(experts), best(parts)


def _regret(trained: Means) -> dict[str, Any]:
    if missing := _missing(trained):
        return _unknown(missing)
    mean, low, high = trained.difference("router", "oracle")
    return {"value": mean, "interval": [low, high], "reason": None}


def _missing(trained: Means) -> str:
    names = sorted(label(name) for name in {"router", "oracle"} - trained.value.keys())
    return f"no {' and no '.join(names)}" if names else ""


def _gap_closed(trained: Means, best_part: dict[str, Any] | None) -> dict[str, Any]:
    """(best part - mixture) / (best part - oracle): 0 is as good as the best part, 1 as good as the oracle.

    The interval is that of the ratio in the resamples with a gap; the best part is the same in all of them.
    """
    if best_part is None:
        return _unknown("no base and no expert")
    if missing := _missing(trained):
        return _unknown(missing)
    name = best_part["name"]
    gap = trained.difference(name, "oracle")
    if gap.mean <= NEGLIGIBLE:
        return _unknown(f"there is no gap to close: the oracle is no better than {name}")
    value = trained.difference(name, "router").mean / gap.mean
    if gap.low <= NEGLIGIBLE:
        reason = f"no interval, as that of the gap itself, {gap.low:.3f} to {gap.high:.3f}, is not above 0"
        return {"value": value, "interval": None, "reason": reason}
    part, router, oracle = (trained.draws[key] for key in (name, "router", "oracle"))
    some = part > oracle
    interval = bounds((part - router)[some] / (part - oracle)[some], trained.level)
    return {"value": value, "interval": list(interval), "reason": None}


def _unknown(reason: str) -> dict[str, Any]:
    return {"value": None, "interval": None, "reason": reason}


def _verdict(
    trained: Means,
    unseen: Means | None,
    costs: Mapping[str, Cost],
    within: float,
    groups: Mapping[str, int],
    unit: Unit,
) -> dict[str, Any]:
    """Choose the cheapest of the usable contenders within a share `within` of the best of them.

    The cheapest has the fewest active bytes, which bound the speed of decoding. Where bytes are equal, or unknown for
    any candidate, the order of `USABLE` decides: one dense model before an expert beside it, one expert before many.
    """
    nats = trained.value
    rank = list(USABLE).index
    known = [name for name in nats if _kind(name) in USABLE and (unit is NATS or name != "base")]
    usable = sorted(known, key=lambda name: (rank(_kind(name)), nats[name]))
    best = min(usable, key=nats.__getitem__)
    close = [name for name in usable if unit.close(nats[name], nats[best], within)]
    sizes = {name: costs.get(name, {}).get("bytes") for name in close}
    if None not in sizes.values():
        close.sort(key=lambda name: sizes[name] or 0)  # stable: equal bytes keep the order
    cheaper, why = _why_cheapest(close, sizes)
    use, cost = close[0], costs.get(close[0], {})
    runner_up = min((name for name in usable if name != use), key=nats.__getitem__, default=None)
    others = ", ".join(label(name) for name in close if name != best) or "nothing else"
    versus = None if runner_up is None else {"name": runner_up, **_plain(trained.difference(use, runner_up))}
    return {
        "use": use,
        "sentence": _sentence(trained, use, runner_up, cost, cheaper, unit),
        "within": close,
        "best": best,
        "runner_up": versus,
        "bytes": cost.get("bytes"),
        "tokens_per_second": cost.get("tokens_per_second"),
        "reasons": [
            f"Within {100 * within:g}% of the best, {label(best)} at {unit.figure(nats[best]):.3f}: {others}.",
            *why,
            *_on_the_mixture(trained, use, runner_up),
            *_on_the_unseen(unseen, use),
            *_on_the_evidence(groups),
        ],
    }


def _called(name: str) -> str:
    kind, _, expert = name.partition(":")
    return USABLE[kind].format(expert)


def _sentence(trained: Means, use: str, runner_up: str | None, cost: Cost, cheaper: str, unit: Unit) -> str:
    nats, other = trained.value, runner_up and _called(runner_up)
    parts = [f"Use {_called(use)}: {unit.shown(nats[use])}"]
    if runner_up is None:
        parts.append("; no other contender was measured")
    else:
        difference = trained.difference(use, runner_up)
        if abs(difference.mean) <= NEGLIGIBLE:
            parts.append(f", {cheaper} than {other} and just as good")
        elif difference.mean > 0:
            share = f"{unit.share(difference.mean, nats[runner_up]):.1%}"
            parts.append(f", {cheaper} than {other} and only {share} worse, by {_amount(difference, trained.level)}")
        else:
            parts.append(f", better than {other} by {_amount(difference, trained.level)}")
            parts.append("" if difference.clear else ", which is no clear difference")
    if count := cost.get("bytes"):
        parts.append(f"; {size(count)} active")
    if speed := cost.get("tokens_per_second"):
        parts.append(f"; {speed:,.0f} tokens/s")
    return "".join(parts) + "."


def _amount(difference: Difference, level: float) -> str:
    """The size of a difference, without its sign: `0.045 (95% interval 0.033 to 0.056)`."""
    mean, low, high = difference if difference.mean >= 0 else (-difference.mean, -difference.high, -difference.low)
    return f"{mean:.3f} ({level:.0%} interval {low:.3f} to {high:.3f})"


def _better_or_worse(difference: Difference, level: float) -> str:
    word = "worse" if difference.mean > 0 else "better"
    return f"{_amount(difference, level)} {word}{'' if difference.clear else ', not clearly,'}"


def _why_cheapest(close: list[str], sizes: Mapping[str, int | None]) -> tuple[str, list[str]]:
    """The word that compares the chosen contender with the others, and the reason for the choice."""
    if len(close) == 1:
        return "simpler", []
    if None in sizes.values():
        return "simpler", ["The simplest of these is chosen, as not all of their active bytes are known."]
    if len(set(sizes.values())) == 1:
        return "simpler", ["The simplest of these is chosen, as their active bytes are equal."]
    listed = ", ".join(f"{label(name)} {size(sizes[name] or 0)}" for name in close)
    return "cheaper", [f"By active bytes: {listed}."]


def _on_the_mixture(trained: Means, use: str, runner_up: str | None) -> list[str]:
    reasons, nats = [], trained.value
    if "router" not in nats:
        return ["No mixture was measured."]
    if "router" not in (use, runner_up):
        compared = _better_or_worse(trained.difference("router", use), trained.level)
        reasons.append(f"The mixture is {compared} than {use}.")
    if simpler := [name for name in ("uniform", "random", "keyword") if nats.get(name, np.inf) < nats["router"]]:
        reasons.append(f"The learned router does worse than {' and '.join(simpler)}.")
    return reasons


def _on_the_unseen(unseen: Means | None, use: str) -> list[str]:
    if unseen is None or use == "base" or "base" not in unseen.value:
        return []
    compared = _better_or_worse(unseen.difference(use, "base"), unseen.level)
    return [f"On domains without training rows, {_called(use)} is {compared} than the base."]


def _on_the_evidence(groups: Mapping[str, int]) -> list[str]:
    few = [f"{domain} ({count})" for domain, count in groups.items() if count < FEW_GROUPS]
    return [f"Intervals are too narrow where independent groups are few: {', '.join(few)}."] if few else []
