"""The words of a verdict: one sentence on what to use, and the reasons.

Knows nothing about scores of rows: it reads a ruling and the means that it rests on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.evaluate.ruling import USABLE, Ruling, kind_of
from moesaic.evaluate.statistics import Difference, Means
from moesaic.evaluate.units import label, size

FEW_GROUPS = 10
UNSEEN_LIMIT = 0.01
"""The share by which the mixture may be worse than the base on text of other domains."""
ROUTERLESS = {"uniform": "equal weights of all experts", "random": "a random choice", "keyword": "the keyword router"}


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on beside the ruling: `within` is the share of the best that makes no difference in use.

    `even`: the means over domains; None where the ruling is by that mean. `unseen`: the means on text of no domain.
    """

    even: Means | None
    unseen: Means | None
    groups: Mapping[str, int]
    seed: int
    within: float


def called(name: str) -> str:
    """Name a contender in a sentence."""
    kind, _, expert = name.partition(":")
    return USABLE[kind].format(expert)


def sentence(ruling: Ruling, evidence: Evidence) -> str:
    """Say what to use, how good it is, and how it compares."""
    use, other, difference = ruling.use, ruling.against, ruling.versus()
    start = f"Use {called(use)}: {ruling.unit.shown(ruling.means.value[use])}"
    own = ruling.bytes_of(use)
    if other is None or difference is None:
        return f"{start}; no other contender was measured{f'; {size(own)} active' if own else ''}."
    shown = f"{difference_in_words(difference, ruling.means.level)}, {one_run(evidence.seed)}"
    if difference.clear:
        by, _, interval = shown.partition(" better, ")
        return f"{start}, better than {called(other)} by {by} ({interval}){f'; {size(own)} active' if own else ''}."
    alike = "equally good as" if ruling.equal(use, other, evidence.within) else "not clearly different from"
    return f"{start}, {alike} {called(other)} ({shown}): {cheaper(ruling, use, other)}."


def spoken(evaluation: Mapping[str, Any]) -> str:
    """The sentence of an evaluation with the speeds of the contenders in it, where they were measured.

    They differ from run to run, so that evaluation.json has them among its times only.
    """
    verdict, speeds = evaluation["verdict"], evaluation.get("timing", {}).get("tokens_per_second", {})
    sentence, use, other = str(verdict["sentence"]), verdict["use"], verdict.get("runner_up") or {}
    if use not in speeds:
        return sentence
    against = f" ({called(other['name'])} {speeds[other['name']]:,.0f})" if other.get("name") in speeds else ""
    return f"{sentence.removesuffix('.')}; {speeds[use]:,.0f} tokens/s{against}."


def one_run(seed: int) -> str:
    return f"one training run, seed {seed}"


def cheaper(ruling: Ruling, use: str, other: str) -> str:
    """The reason to prefer one of two contenders that the scores do not tell apart."""
    own, its = ruling.bytes_of(use), ruling.bytes_of(other)
    if own is None or its is None:
        return "simpler to serve"
    if own != its:
        return f"{size(own)} instead of {size(its)} active"
    return f"as many active bytes, {size(own)}, and {'faster' if _faster(ruling, use, other) else 'simpler to serve'}"


def _faster(ruling: Ruling, use: str, other: str) -> bool:
    own, its = (ruling.costs[name].get("tokens_per_second") for name in (use, other))
    return own is not None and its is not None and own > its


def difference_in_words(difference: Difference, level: float) -> str:
    """A difference without its sign: `0.045 better, 95% interval 0.033 to 0.056`; `apart` where it rounds to 0."""
    mean, low, high = difference if difference.mean >= 0 else (-difference.mean, -difference.high, -difference.low)
    word = "apart" if round(mean, 3) == 0 else "worse" if difference.mean > 0 else "better"
    word = ("worse" if difference.mean > 0 else "better") if difference.clear else word
    return f"{mean:.3f} {word}, {level:.0%} interval {low:z.3f} to {high:z.3f}"


def compared(means: Means, name: str, other: str) -> str:
    """Say how one contender differs from another: `0.045 worse (95% interval 0.033 to 0.056) than`."""
    difference = means.difference(name, other)
    amount, _, interval = difference_in_words(difference, means.level).partition(", ")
    clear = "" if difference.clear else ", no clear difference"
    return f"{amount} ({interval}{clear}) {'from' if amount.endswith('apart') else 'than'}"


def reasons(ruling: Ruling, evidence: Evidence) -> list[str]:
    """The reasons for a ruling, and what speaks against it."""
    parts = (
        _on_the_tie(ruling),
        _on_what_else_tells_them_apart(ruling),
        _on_what_is_nearly_as_good(ruling, evidence.within),
        _on_the_mixture(ruling),
        _on_the_router(ruling),
        _on_the_mean_over_domains(ruling, evidence.even),
        _on_the_unseen(ruling, evidence.unseen),
        _on_the_evidence(evidence.groups),
    )
    return [reason for part in parts for reason in part]


def _on_the_tie(ruling: Ruling) -> Iterator[str]:
    """Everything that the scores do not tell from the best, and how one of it was chosen."""
    best, value = label(ruling.best), ruling.unit.figure(ruling.means.value[ruling.best])
    if len(ruling.tied) == 1:
        if len(ruling.usable) > 1:
            yield f"Every other contender is clearly worse than the best, {best} at {value:.3f}."
        return
    others = ", ".join(label(name) for name in ruling.tied if name != ruling.best)
    yield f"Not clearly different from the best, {best} at {value:.3f}: {others}."
    sizes = {name: ruling.bytes_of(name) for name in ruling.tied}
    if None in sizes.values():
        yield "Of these the simplest to serve is chosen, as not all of their active bytes are known."
    else:
        listed = ", ".join(f"{label(name)} {size(count or 0)}" for name, count in sizes.items())
        yield f"Of these the cheapest by active bytes is chosen: {listed}."


def _on_what_else_tells_them_apart(ruling: Ruling) -> Iterator[str]:
    if "router" not in ruling.tied:
        return
    dense = [called(name) for name in ruling.tied if kind_of(name) in ("average", "joint", "joint_wide")]
    if dense:
        yield (
            "Experts of the mixture can be added, replaced and taken out without training the others; a change of "
            f"{' or '.join(dense)} changes the whole."
        )


def _on_what_is_nearly_as_good(ruling: Ruling, within: float) -> Iterator[str]:
    """The cheapest contender that is clearly worse than the best, but by little."""
    own, means, unit = ruling.bytes_of(ruling.use), ruling.means, ruling.unit
    close = [
        (size_, name)
        for name in ruling.usable
        if name not in ruling.tied
        and unit.close(means.value[name], means.value[ruling.best], within)
        and (size_ := ruling.bytes_of(name)) is not None
        and own is not None
        and size_ < own
    ]
    for count, name in sorted(close)[:1]:
        share = unit.share(means.value[name] - means.value[ruling.use], means.value[ruling.use])
        yield f"With {size(count)} active, {called(name)} is {share:.1%} worse, clearly."


def _on_the_mixture(ruling: Ruling) -> Iterator[str]:
    if "router" not in ruling.means.value:
        yield "No mixture was measured."
    elif "router" not in (ruling.use, ruling.against):
        yield f"The mixture is {compared(ruling.means, 'router', ruling.use)} {called(ruling.use)}."


def _on_the_router(ruling: Ruling) -> Iterator[str]:
    """Ways to choose that need no training, where they are as good as the trained router."""
    means = ruling.means
    if "router" not in means.value:
        return
    for name, words in ROUTERLESS.items():
        if name in means.value and not (difference := means.difference(name, "router")).low > 0:
            verb = "beats" if difference.clear else "ties with"
            yield (
                f"{words.capitalize()}, which needs no training, {verb} the trained router: "
                f"{difference_in_words(difference, means.level)}."
            )


def _on_the_mean_over_domains(ruling: Ruling, even: Means | None) -> Iterator[str]:
    if even is None:
        return
    best = min(ruling.usable, key=even.value.__getitem__)
    if best not in ruling.tied and even.difference(ruling.use, best).clear:
        yield (
            f"By the mean over domains, which does not decide, {called(ruling.use)} is "
            f"{compared(even, ruling.use, best)} {called(best)}."
        )


def _on_the_unseen(ruling: Ruling, unseen: Means | None) -> Iterator[str]:
    """How the chosen contender and the mixture fare on text of no domain, where the base should not be missed."""
    if unseen is None or "base" not in unseen.value:
        return
    for name in dict.fromkeys(name for name in (ruling.use, "router") if name != "base" and name in unseen.value):
        share = ruling.unit.share(unseen.difference(name, "base").mean, unseen.value["base"])
        broken = f": {share:.1%}, over the limit of {UNSEEN_LIMIT:.0%}" if share > UNSEEN_LIMIT else ""
        yield f"On text of no domain, {called(name)} is {compared(unseen, name, 'base')} the base{broken}."


def _on_the_evidence(groups: Mapping[str, int]) -> Iterator[str]:
    few = [f"{domain} ({count})" for domain, count in groups.items() if count < FEW_GROUPS]
    if few:
        yield f"Intervals are too narrow where independent groups are few: {', '.join(few)}."
