"""What a decision costs: the time of a router, and the time to the first token beside that of a named expert.

In this process, without HTTP, by the calls that the server's thread makes.
"""

import os
from collections.abc import Callable
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path

import torch

import moesaic
from benchmarks.engine import NAMES, RANK, TARGETS, TEXTS
from benchmarks.page import Bar, tabulated
from benchmarks.timing import alternate
from moesaic.adapters import LoRA, attach
from moesaic.artefacts.base import Base, load_base
from moesaic.config import Feature
from moesaic.generate import Engine
from moesaic.generate.engine import Encoded
from moesaic.generate.loaded import WritingModel
from moesaic.model.deciding import Decider
from moesaic.model.features import Prompts
from moesaic.model.mixture import AdapterMixture
from moesaic.model.text_counts import SIZE
from moesaic.routing import Selection
from moesaic.routing.routers import MLPRouter
from moesaic.serve.version import Limits, Order, Version

WORDS = 150
"""Words of a prompt whose first token is waited for."""


def section(quick: bool) -> str:
    """Both tables."""
    rounds = 2 if quick else 25
    tiny = Path(moesaic.__file__).parent / "shipped" / "tiny"
    folders = {"the shipped base": (tiny, (1, 2))}
    if named := os.environ.get("MOESAIC_SMOLLM2"):
        folders["SmolLM2-135M-Instruct"] = (Path(named), (3, 8))
    lines = [
        "## Deciding",
        "",
        f"Routers with random weights over {len(NAMES)} experts of rank {RANK}. `first token`: of a prompt of {WORDS} "
        "words by another expert than the last one, from the request to the token; `forced`: the same where the "
        f"request names its expert, so that the prompt is only read. Median of {rounds} rounds in turns.",
        "",
        "| base | feature | experts in layers | forced | routed | routed / forced | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (folder, depths) in folders.items():
        for feature, first in [("characters", 0), *((f"hidden@{depth}", at) for depth in depths for at in (0, depth))]:
            lines.append(f"| {name} | {feature} | {first_token(load_base(folder), feature, first, rounds)} |")
    return "\n".join([*lines, "", tabulated(routers(load_base(tiny), rounds)), ""])


def decider(base: Base, feature: str, names: tuple[str, ...]) -> Decider:
    """A linear router with random weights."""
    width = SIZE if feature == "characters" else base.decoder.config.hidden_size
    router = MLPRouter(width, len(names), []).eval()
    return Decider.over(base.decoder, names, router, Feature.parse(feature), Selection(kind="top_1"))


def version(base: Base, decides: Decider, trunk: int) -> Version:
    """A mixture as the server has it."""
    mixture = AdapterMixture(base.decoder, decides, trunk).eval()
    return Version("mixture", WritingModel(Path(), Engine(mixture, base.tokenizer)), Limits())


def first_token(base: Base, feature: str, first: int, rounds: int) -> str:
    """The cells of one feature, with experts in the layers from `first` on."""
    layers, generator = range(first, len(base.decoder.layers)), torch.Generator().manual_seed(0)
    experts = [LoRA.fresh(base.decoder, RANK, 2.0 * RANK, TARGETS, layers, generator) for _ in NAMES]
    attach(base.decoder, experts)
    served, numbers = version(base, decider(base, feature, NAMES), first), count()
    served.model.identity = "0" * 12

    def wait(model: str) -> None:
        number = next(numbers)  # other words every time, so that no prefix is in the cache
        words = [f"{number}", *islice(cycle(" ".join(TEXTS).split()), WORDS)]
        order = Order(model=model, prompt=" ".join(words), raw=True, max_new_tokens=1)
        request = served.request(order)
        decision = served.decide(order, served.read(request), None, None)
        ticket = served.scheduler.submit(request, decision.routing)
        while not ticket.finished:
            served.scheduler.step()

    expert = f"mixture:{NAMES[0]}"
    times = alternate({"forced": lambda: wait(expert), "routed": lambda: wait("mixture")}, rounds, inner=1)
    ratio = times["routed"] / times["forced"]
    told = "reached" if ratio <= 1.1 else "**not reached** (1.1)"
    both = " | ".join(f"{seconds * 1e3:.2f} ms" for seconds in times.values())
    return f"{first} to {layers.stop - 1} | {both} | {ratio:.2f} | {told}"


def routers(base: Base, rounds: int) -> list[Bar]:
    """Bars of the time of one decision about one text, with few experts and with many."""
    bars = []
    for number, most in ((len(NAMES), 0.1), (1000, 0.5)):
        names = tuple(f"expert-{place}" for place in range(number))
        decides = decider(base, "characters", names)
        served = version(base, decides, 0)
        served.model.identity = "0" * 12
        orders = [Order(model="mixture", prompt=text, raw=True, max_new_tokens=1) for text in TEXTS]
        encoded = [served.read(served.request(order)) for order in orders]

        router = partial(decide_all, decides, [one.prompts for one in encoded])
        whole = partial(report_all, served, [*zip(orders, encoded, strict=True)])
        calls: dict[str, Callable[[], None]] = {"router and selection": router, "with its report": whole}
        times = alternate(calls, rounds, inner=20)
        for what, seconds in times.items():
            each = seconds / len(TEXTS) * 1e3
            told = f"`characters`, {number:,} experts: {what}"
            bars.append(Bar(told, f"at most {most} ms", f"{each:.3f} ms", each <= most))
    return bars


@torch.inference_mode()
def decide_all(decides: Decider, texts: list[Prompts]) -> None:
    for one in texts:
        decides.decide(one)


def report_all(served: Version, asked: list[tuple[Order, Encoded]]) -> None:
    for order, encoded in asked:
        served.decide(order, encoded, None, None)
