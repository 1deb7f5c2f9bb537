"""The verdict on all contenders from their scores: controls, regret, gap closed, and which of them to use.

Knows nothing about models or devices: scores per row and costs come in, a dict ready for JSON goes out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from moesaic.errors import DataError, nearest
from moesaic.evaluate.ruling import USABLE, Cost, Ruling, kind_of
from moesaic.evaluate.statistics import ALL, NEGLIGIBLE, UNSEEN, Difference, Judged, Means, bounds
from moesaic.evaluate.units import NATS, label
from moesaic.evaluate.wording import Evidence, reasons, sentence

ORDER = (
    *("base", "expert", "joint", "joint_wide", "average", "uniform"),
    *("random", "keyword", "router", "oracle", "oracle_best"),
)
DERIVED = ("random", "oracle", "oracle_best")


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
    test rows choose it, and `chosen_on` says so. All intervals are paired percentile bootstraps. `within`: the share of
    the best figure by which equally good contenders differ at most.
    """
    _require_known(scores)
    contenders = with_derived(scores)
    unit = next(iter(contenders.values())).unit
    rows = Counter(next(iter(contenders.values())).domains)
    trained = Means.of(contenders, ALL, seed, resamples, level)
    unseen = Means.of(contenders, UNSEEN, seed, resamples, level) if UNSEEN in rows else None
    each = {name: one.over_domains() for name, one in contenders.items()}
    even = None if unit.rises else Means.of(each, ALL, seed, resamples, level)
    best_single, best_part = _best_parts(scores, select_on)
    first = next(iter(contenders.values()))
    distinct = {*zip(first.domains, first.groups, strict=True)}
    groups = dict(sorted(Counter(domain for domain, _ in distinct).items()))
    usable = [name for name in contenders if kind_of(name) in USABLE and (unit is NATS or name != "base")]
    ruling = Ruling.of(usable, trained, costs or {}, unit)
    evidence = Evidence(even, unseen, groups, seed, within)
    return {
        "verdict": _verdict(ruling, evidence),
        "measure": unit.key,
        "controls": {
            name: _control(name, contenders[name], trained, unseen, even, (costs or {}).get(name))
            for name in contenders
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
    return {name: contenders[name] for name in sorted(contenders, key=lambda name: ORDER.index(kind_of(name)))}


def _require_known(scores: Mapping[str, Judged]) -> None:
    for name in scores:
        kind, _, expert = name.partition(":")
        if kind not in ORDER or kind in DERIVED or (kind == "expert") != bool(expert) or expert in (ALL, UNSEEN):
            known = ["expert:<name>" if kind == "expert" else kind for kind in ORDER if kind not in DERIVED]
            raise DataError("not a contender", expected=", ".join(known), got=name, hint=nearest(name, known))
    if not any(kind_of(name) in USABLE for name in scores):
        raise DataError("no contender that could be used", expected=", ".join(USABLE), got=list(scores))


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


def _control(
    name: str, scores: Judged, trained: Means, unseen: Means | None, even: Means | None, cost: Cost | None
) -> dict[str, Any]:
    stored = {key: value for key, value in (cost or {}).items() if key != "tokens_per_second"}  # that is in `timing`
    return {
        **scores.figures(),
        **({} if even is None else {"over_domains": even.value[name]}),
        "interval": sorted(map(scores.unit.figure, trained.interval(name))),
        "versus_router": _versus_router(name, trained),
        **({} if unseen is None else {"versus_router_unseen": _versus_router(name, unseen)}),
        **({} if cost is None else {"cost": stored}),
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

    The interval is that of the ratio in the resamples whose gap is above rounding; the best part is the same in all.
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
    some = part - oracle > NEGLIGIBLE
    interval = bounds((part - router)[some] / (part - oracle)[some], trained.level)
    return {"value": value, "interval": list(interval), "reason": None}


def _unknown(reason: str) -> dict[str, Any]:
    return {"value": None, "interval": None, "reason": reason}


def _verdict(ruling: Ruling, evidence: Evidence) -> dict[str, Any]:
    """The ruling as JSON, with its words."""
    versus = ruling.versus()
    return {
        "use": ruling.use,
        "sentence": sentence(ruling, evidence),
        "tied": list(ruling.tied),
        "best": ruling.best,
        "runner_up": versus and {"name": ruling.against, **_plain(versus)},
        "bytes": ruling.bytes_of(ruling.use),
        "reasons": reasons(ruling, evidence),
    }
