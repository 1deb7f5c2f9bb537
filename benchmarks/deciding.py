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
from benchmarks.page import Bar, Section
from benchmarks.timing import best_decile, laps
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


def measured(rounds: int) -> Section:
    """The table of first tokens, and the bars of routers."""
    tiny = Path(moesaic.__file__).parent / "shipped" / "tiny"
    folders = {"the shipped base": (tiny, (1, 2))}
    if named := os.environ.get("MOESAIC_SMOLLM2"):
        folders["SmolLM2-135M-Instruct"] = (Path(named), (3, 8))
    lines = [
        f"Linear routers with random weights over {len(NAMES)} experts of rank {RANK}, in one process without HTTP. "
        f"Wait for the first token after a prompt of {WORDS} words that share no prefix: `forced`, where the request "
        "names its expert, so that the prompt is only read; `routed`, where the router decides first. `layers`: those "
        f"that the experts change. Best tenth of {rounds} rounds in turns. The router reads k layers under the base. "
        "Where the experts change none of these, the answer goes on behind them. Where they do, the expert reads all: "
        "keys and values of a layer that it changes, or of one above it, are others than those of the base, so the "
        "ratio is about 1 + k / layers.",
        "",
        "| base | feature | layers | forced | routed | routed / forced |",
        "|---|---|---|---|---|---|",
    ]
    bars = []
    for name, (folder, depths) in folders.items():
        for feature, first in [("characters", 0), *((f"hidden@{depth}", at) for depth in depths for at in (0, depth))]:
            base = load_base(folder)
            layers = range(first, len(base.decoder.layers))
            forced, routed = first_token(base, feature, layers, rounds)
            ratio, which = routed / forced, f"{first} to {layers.stop - 1}"
            times = f"{forced * 1e3:.1f} ms | {routed * 1e3:.1f} ms | {ratio:.2f}"
            lines.append(f"| {name} | `{feature}` | {which} | {times} |")
            what = f"first token, {name}, `{feature}`, layers {which}: routed / forced"
            bars.append(Bar(what, "at most 1.1", f"{ratio:.2f}", ratio <= 1.1))
    return Section("Deciding", "\n".join(lines), [*bars, *routers(load_base(tiny), rounds)])


def decider(base: Base, feature: str, names: tuple[str, ...]) -> Decider:
    """A linear router with random weights."""
    width = SIZE if feature == "characters" else base.decoder.config.hidden_size
    router = MLPRouter(width, len(names), []).eval()
    return Decider.over(base.decoder, names, router, Feature.parse(feature), Selection(kind="top_1"))


def version(base: Base, decides: Decider, trunk: int) -> Version:
    """A mixture as the server has it."""
    mixture = AdapterMixture(base.decoder, decides, trunk).eval()
    return Version("mixture", WritingModel(Path(), Engine(mixture, base.tokenizer)), Limits())


def first_token(base: Base, feature: str, layers: range, rounds: int) -> tuple[float, float]:
    """Seconds to the first token of an expert that the request names, and of one that the router chooses."""
    generator = torch.Generator().manual_seed(0)
    attach(base.decoder, [LoRA.fresh(base.decoder, RANK, 2.0 * RANK, TARGETS, layers, generator) for _ in NAMES])
    served, numbers = version(base, decider(base, feature, NAMES), layers.start), count()
    served.model.identity = "0" * 12

    def wait(model: str) -> None:
        number = next(numbers)  # other words every time, so that no prefix is in the cache
        words = [f"{number}", *islice(cycle(" ".join(TEXTS).split()), WORDS)]
        order = Order(model=model, prompt=" ".join(words), raw=True, max_new_tokens=1)
        request = served.request(order)
        decision, begun = served.decide(order, served.read(request), None, None)
        ticket = served.scheduler.submit(request, decision.routing, begun)
        while not ticket.finished:
            served.scheduler.step()

    expert = f"mixture:{NAMES[0]}"
    found = laps({"forced": lambda: wait(expert), "routed": lambda: wait("mixture")}, rounds, inner=1)
    return best_decile(found["forced"]), best_decile(found["routed"])


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
        for what, times in laps(calls, rounds, inner=20).items():
            each = best_decile(times) / len(TEXTS) * 1e3
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
