"""Evaluations in which no two figures read alike, so that a figure beside the wrong words is noticed.

The functions below them write a figure as a reader sees it, apart from the package's own.
"""

from random import Random
from typing import Any

EXPERTS = ("wren", "owl")  # neither in the order of the alphabet, nor in that of their scores
DOMAINS = (*EXPERTS, "unseen")
CONTENDERS = (
    *("base", "expert:wren", "expert:owl", "joint", "joint_wide", "average", "uniform"),
    *("random", "keyword", "router", "oracle", "oracle_best"),
)
DECODED = ("base", "router", "joint", "joint_wide")
STAGES = ("data", "base", "experts", "router", "mixture", "evaluation")
KINDS, FORMS = ("noise", "chat"), ("message", "case")
LENGTHS = ((0, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, None))


class Draw:
    """Figures of several kinds, each of which differs in every text from all others of the same or another `half`."""

    def __init__(self, half: int):
        self.thousandths = iter(Random(half).sample(range(1 + half, 1000, 2), 499))

    def share(self) -> float:
        return next(self.thousandths) / 1000

    def nats(self) -> float:
        return 2 + self.share()

    def count(self) -> int:
        return 1000 + next(self.thousandths)

    def seconds(self) -> float:
        return 100 + next(self.thousandths) / 10

    def size(self) -> int:
        return 10**8 + 10**5 * next(self.thousandths)

    def difference(self) -> float:
        thousandths = next(self.thousandths)
        return (1 if thousandths % 4 < 2 else -1) * (1 + thousandths / 1000)

    def estimate(self, kind: str) -> tuple[float, list[float]]:
        low, value, high = sorted(getattr(self, kind)() for _ in range(3))
        return value, [low, high]


def language(half: int = 0) -> dict[str, Any]:
    """An evaluation of experts that write."""
    draw = Draw(half)
    controls = {name: contender(draw, name, "nats", "nats") | {"over_domains": draw.nats()} for name in CONTENDERS}
    written = {
        domain: {
            name: {"rows": float(rows), "exact_match": draw.share(), "rouge_l": draw.share()}
            for name in ("base", "expert:owl", "expert:wren", "router")
        }
        for domain, rows in ((domain, draw.count()) for domain in EXPERTS)
    }
    tokens = {"tokens_per_second": {name: float(draw.count()) for name in DECODED}}
    return evaluation(draw, controls, "nats", "nats") | {"written": written, "timing": timing(draw) | tokens}


def labelled(half: int = 0) -> dict[str, Any]:
    """An evaluation of experts that classify: nats are there, too, and are not what they are judged by."""
    draw = Draw(half)
    controls = {}
    for name in CONTENDERS:
        value, ends = draw.estimate("share")
        nats = {domain: draw.nats() for domain in (*EXPERTS, "all")}
        pooled = {"accuracy": {"value": value, "interval": ends}, "nats": nats}
        controls[name] = contender(draw, name, "score", "share", EXPERTS) | pooled
    found = evaluation(draw, controls, "score", "share") | {"timing": timing(draw)}
    found["router"]["accuracy_x_score"] = draw.share()
    found["definitions"] = {EXPERTS[0]: {"f1": "f1 of 'sings'"}, EXPERTS[1]: {"f1": "f1: the mean over labels"}}
    return found


def contender(draw: Draw, name: str, key: str, kind: str, domains: tuple[str, ...] = DOMAINS) -> dict[str, Any]:
    value, ends = draw.estimate(kind)
    mean, interval = draw.estimate("difference")
    return {
        key: {domain: getattr(draw, kind)() for domain in domains} | {"all": value},
        "interval": ends,
        "versus_router": None if name == "router" else {"difference": mean, "interval": interval},
        **({"versus_router_unseen": unseen(draw)} if name == "base" and key == "nats" else {}),
        "cost": {"parameters": draw.count(), "bytes": draw.size()},
    }


def unseen(draw: Draw) -> dict[str, Any]:
    value, ends = draw.estimate("difference")
    return {"difference": value, "interval": ends}


def evaluation(draw: Draw, controls: dict[str, Any], key: str, kind: str) -> dict[str, Any]:
    regret, closed = draw.estimate(kind), draw.estimate("share")
    return {
        "stage_key": "0" * 64,
        "name": "birds",
        "seed": draw.count(),
        "measure": key,
        "domains": [*EXPERTS],
        "rows_sha256": {domain: f"{place}" * 64 for place, domain in enumerate(DOMAINS)},
        "verdict": {
            "use": "joint",
            "sentence": f"Use the joint expert: it is number {draw.count()}.",
            "reasons": [f"One reason is {draw.count()}.", f"Another reason is {draw.count()}."],
            "tied": ["joint", "router"],
        },
        "controls": controls,
        "best_part": {"name": "expert:owl", key: getattr(draw, kind)(), "chosen_on": "validation"},
        "regret": {"value": regret[0], "interval": regret[1], "reason": None},
        "gap_closed": {"value": closed[0], "interval": closed[1], "reason": None},
        "rows": {domain: draw.count() for domain in DOMAINS},
        "groups": {domain: draw.count() for domain in DOMAINS},
        "truncated": {domain: draw.count() for domain in DOMAINS},
        "cut": {domain: {"train": draw.share(), "test": draw.share()} for domain in DOMAINS},
        "intervals": {"level": 0.9, "resamples": draw.count(), "seed": draw.count(), "method": "percentile"},
        "router": router(draw, key, kind),
        "parameters": {name: draw.count() for name in ("total", "base", "experts", "router", "trained", "active")},
        "samples": [sample(draw, *EXPERTS), sample(draw, *EXPERTS[::-1])],
    }


def router(draw: Draw, key: str, kind: str) -> dict[str, Any]:
    def tried(name: str, feature: str) -> dict[str, Any]:
        words = {"kind": name, "feature": feature, "selection": f"top_{draw.count()}", "level": f"level {draw.count()}"}
        words |= {"loss": f"loss {draw.count()}", "examples": str(draw.count())}
        return words | {
            "validation_macro_f1": draw.share(),
            "accuracy": draw.share(),
            "macro_f1": draw.share(),
            "matched": {"accuracy": draw.share()},
            "outside": {"abstained": draw.share(), "auroc": draw.share()},
            "worst_form": {"accuracy": draw.share()},
            "utilisation": {name: draw.share() for name in EXPERTS},
            "utilisation_evenness": draw.share(),
            key: getattr(draw, kind)(),
        }

    first, others = tried("linear", "hidden_mean"), [tried("keyword", "text"), tried("mlp", "characters")]
    return first | {
        "accuracy": draw.share(),
        "macro_f1": draw.share(),
        "confusion": {
            "rows": [*EXPERTS],
            "columns": [*EXPERTS, "base"],
            "counts": [[draw.count() for _ in range(3)] for _ in EXPERTS],
        },
        "utilisation": {name: draw.share() for name in (*EXPERTS, "base")},
        "utilisation_entropy": draw.share(),
        "utilisation_evenness": draw.share(),
        "calibration_error": draw.share(),
        "reliability": [
            {"from": one / 10, "below": (one + 1) / 10}
            | {"rows": draw.count(), "confidence": draw.share(), "accuracy": draw.share()}
            | {"interval": sorted((draw.share(), draw.share()))}
            for one in range(10)
        ],
        "by_length": [
            {"from": low, "below": below, "rows": draw.count(), "accuracy": draw.share()} for low, below in LENGTHS
        ],
        "matched": {"tokens": draw.count()},
        "outside": {
            **outside(draw),
            "inside": {"rows": draw.count(), "abstained": draw.share()},
            "kinds": {kind: outside(draw) for kind in KINDS},
        },
        "forms": {
            form: {"rows": draw.count(), "accuracy": draw.share(), "by_form_alone": draw.share()} for form in FORMS
        },
        "tried": [first, *others],
    }


def outside(draw: Draw) -> dict[str, Any]:
    return {"rows": draw.count(), "abstained": draw.share(), "auroc": draw.share()}


def sample(draw: Draw, domain: str, chosen: str) -> dict[str, Any]:
    question, answer = f"Question {draw.count()}", f" and answer {draw.count()}"
    pieces = [[question, None, None, None], [answer[:4], chosen, 1.5, 2.75], [answer[4:], "base", 0.5, 0.5]]
    return {
        "domain": domain,
        "prompt": question,
        "text": f"What it wrote is {draw.count()}",
        "finish": "stop" if domain == EXPERTS[0] else "length",
        "chosen": chosen,
        "weights": {name: draw.share() for name in EXPERTS},
        "reference": answer,
        "tokens": pieces,
    }


def timing(draw: Draw) -> dict[str, Any]:
    return {"seconds": draw.seconds(), "stages": {name: draw.seconds() for name in STAGES}}


LABELS = {name: (f"{name} sings", f"{name} flies", f"{name} Flies") for name in EXPERTS}
SPLITS = ("train", "validation", "test")


def texts(half: int = 0) -> dict[str, Any]:
    """What data.json would say of the rows of such a run."""
    draw = Draw(half)
    return {
        "rows": {f"{name}/{split}": draw.count() for name in EXPERTS for split in ("train", "validation", "test")},
        "dropped": {name: {"train: repeated": draw.count(), "test: too long": draw.count()} for name in EXPERTS},
        "duplicates": {"wren/train ~ owl/test": {"exact": draw.count(), "near": draw.count()}},
        "files": {
            f"{name}.jsonl": {"read": draw.count(), "used": draw.count(), "skipped": {"not JSON": draw.count()}}
            | {"ignored": {"system": draw.count(), "weight": draw.count()}}
            for name in EXPERTS
        },
        "facts": {
            name: {
                "labels": {split: {one: draw.count() for one in LABELS[name]} for split in SPLITS},
                "labels_alike": [[*LABELS[name][1:]]],
                "texts_with_two_labels": draw.count(),
                "prompts_in_train_and_test": draw.count(),
            }
            for name in EXPERTS
        },
    }


def nats(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}"


def share(value: float) -> str:
    return f"{100 * value:.1f}%"


def count(value: float) -> str:
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    return f"{value:.1f}"


def size(value: float) -> str:
    return f"{value / 10**6:.1f} MB"
