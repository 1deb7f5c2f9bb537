"""Replay of a routing trace with another router, and how its decisions compare with the recorded ones.

Knows nothing about how the trace was written, nor about the answers: only about the decisions.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.artefacts import router as router_room
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.base_search import base_of
from moesaic.artefacts.router import StoredRouter, load_router
from moesaic.errors import DataError, WeightsError
from moesaic.evaluate.statistics import Scores, paired
from moesaic.files import MANIFEST
from moesaic.generate.engine import BASE
from moesaic.generate.trace import Decision, mean, numbered, utilisation
from moesaic.hardware import AUTO, chosen
from moesaic.hub.locate import locate
from moesaic.model.features import Prompts

BATCH = 32
Choice = tuple[str, float | None]
"""The chosen expert and its probability; None where the router abstained, which leaves the row to the base."""


def replay(
    trace: str | os.PathLike[str],
    router: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = AUTO,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Score another router on the traffic of a trace, ready for JSON; `seed`: of the bootstrap.

    `router`: its folder, or that of a mixture or run. `base`: the base that the router reads; by default the one in
    the folders around the router that has the right fingerprint. `device`, `dtype`: see `moesaic.load`.
    The result is that of `compare`, with `trace`, `router`, `base` (folders), `rows` (all of the trace), and
    `left_out` (rows not replayed, by reason). Raises DataError where no row can be replayed, as in a trace without
    texts.
    """
    path, at, compute = Path(trace), router_at(Path(router)), chosen(device, dtype)
    decisions = list(numbered(path))
    found = (locate(base) if base is not None else base_of(at, router_room.KIND)).folder
    reads = load_base(found, compute=compute)
    stored = load_router(at, reads.fingerprint)
    stored.put(compute.device)

    asked = {line: one for line, one in decisions if one.asked and not one.forced}
    encoded = {line: reads.tokenizer.begin(one.asked, one.raw) for line, one in asked.items() if one.asked}
    context = reads.decoder.config.context
    reasons = {line: reason_against(one, encoded.get(line, []), context) for line, one in decisions}
    left_out = {reason: count for reason, count in Counter(reasons.values()).items() if reason}
    rows = {line: one for line, one in decisions if not reasons[line]}
    if not rows:
        got = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no rows"
        hint = "record texts too: moesaic generate --trace FILE --trace-texts"
        raise DataError("nothing to replay", path=path, got=got, hint=hint)
    texts = [reads.tokenizer.decode(encoded[line]) for line in rows]
    choices = choose(reads, stored, texts, [encoded[line] for line in rows])
    places = {"trace": str(path), "router": str(at), "base": str(found)}
    counts = {"rows": len(decisions), "left_out": left_out}
    return {**places, **counts, **compare(rows, choices, stored.names, seed)}


def reason_against(one: Decision, ids: list[int], context: int) -> str | None:
    if one.forced:
        return "forced"
    if one.asked is None:
        return "without text"
    if not ids:
        return "without tokens"
    return "longer than the context" if len(ids) > context else None


@torch.inference_mode()
def choose(base: Base, stored: StoredRouter, texts: list[str], encoded: list[list[int]]) -> list[Choice]:
    """Decide about each prompt as in a mixture. Rows of similar length share a batch, which only saves time."""
    decider, device = stored.over(base.decoder), base.decoder.norm.weight.device
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    choices: list[Choice] = [(BASE, None)] * len(texts)
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        routing = decider.decide(Prompts.pad([encoded[i] for i in some], [texts[i] for i in some], device))
        for i, best, shares in zip(some, routing.best.tolist(), routing.probabilities.tolist(), strict=True):
            if best >= 0:
                choices[i] = stored.names[best], shares[best]
    return choices


def compare(rows: dict[int, Decision], choices: list[Choice], names: tuple[str, ...], seed: int = 0) -> dict[str, Any]:
    """Compare the recorded decisions with those of a router over `names`; `rows`: by line of the trace.

    {compared (rows), agreement (share of rows with the same choice), recorded and replayed ({utilisation, confidence:
    mean over rows where an expert was chosen}), only_recorded and only_replayed (experts that only one of the two
    knows), corrected (see `corrected`), differing (rows of another choice: line, prompt, recorded, replayed,
    correction)}.
    """
    known = list(dict.fromkeys(name for one in rows.values() for name in one.weights))
    recorded, replayed = [one.chosen for one in rows.values()], [chosen for chosen, _ in choices]
    sure = [one.confidence for one in rows.values()], [confidence for _, confidence in choices]
    pairs = list(zip(rows.items(), replayed, strict=True))
    differing = [
        {"line": line, "prompt": one.text, "recorded": one.chosen, "replayed": other, "correction": one.correction}
        for (line, one), other in pairs
        if one.chosen != other
    ]
    both = zip(("recorded", "replayed"), (known, names), (recorded, replayed), sure, strict=True)
    return {
        "compared": len(pairs),
        "agreement": 1 - len(differing) / len(pairs),
        **{
            which: {"utilisation": utilisation(chosen, own), "confidence": mean([x for x in some if x is not None])}
            for which, own, chosen, some in both
        },
        "only_recorded": [name for name in known if name not in names],
        "only_replayed": [name for name in names if name not in known],
        "corrected": corrected([(one, other) for (_, one), other in pairs if one.correction], {*known, *names}, seed),
        "differing": differing,
    }


def corrected(pairs: list[tuple[Decision, str]], known: set[str], seed: int) -> dict[str, Any] | None:
    """Compare both routers on rows with a correction; None where there are no such rows.

    {rows, prompts (different ones: rows of one prompt are drawn together), recorded and replayed (accuracy),
    difference (replayed - recorded), interval (95%, paired bootstrap), unknown (corrections that neither knows)}.
    """
    if not pairs:
        return None
    groups = [one.text or "" for one, _ in pairs]

    def errors(chosen: list[str]) -> Scores:
        wrong = [choice != one.correction for (one, _), choice in zip(pairs, chosen, strict=True)]
        return Scores(np.array(wrong, np.float64), np.ones(len(wrong)), ["corrected"] * len(wrong), groups)

    recorded, replayed = errors([one.chosen for one, _ in pairs]), errors([other for _, other in pairs])
    difference = paired(recorded, replayed, seed=seed)
    return {
        "rows": len(pairs),
        "prompts": len(set(groups)),
        "recorded": 1 - float(recorded.nats.mean()),
        "replayed": 1 - float(replayed.nats.mean()),
        "difference": difference.mean,
        "interval": [difference.low, difference.high],
        "unknown": sorted({one.correction for one, _ in pairs if one.correction} - {*known, BASE}),
    }


def router_at(folder: Path) -> Path:
    for candidate in (folder / "mixture" / "router", folder / "router", folder):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise WeightsError("no router here", path=folder, expected="a router's folder, a mixture or a run directory")
