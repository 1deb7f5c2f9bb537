"""A sparse ffn layer against the one of transformers' Mixtral, in each of its implementations that a CPU has; and
decoding with adapters beside its experts against decoding without.

Same weights, same tokens, CPU time of one thread: what else the machine does disturbs it little.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from benchmarks.timing import laps
from moesaic.adapters import attach
from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder, initialise
from moesaic.nn import Cache, SparseFFN
from moesaic.routing import Gates
from moesaic.testing import toy_expert

PEERS = {"eager": 512, "batched_mm": 8, "grouped_mm": 512}
"""Implementation of transformers -> the most tokens that it gets: `batched_mm` copies the experts of every token."""

SHAPES = [(8, 2, 384, 512), (64, 8, 384, 128)]  # experts, chosen, width, inner width of an expert
TOKENS = (1, 8, 64, 512)
ROUNDS, LAP = 12, 32  # tokens of a lap at least
ADAPTERS, RANK, LAYERS, KNOWN = 4, 8, 4, 32  # of the decoder that decodes; tokens that its rows have read
OF_EXPERTS = ["gate_proj", "up_proj", "down_proj"]
WITHIN = (2, 9)  # of 12 ordered rounds: an interval that holds the median in 96 of 100 cases


def report(quick: bool) -> str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layers = [line(shape, tokens, step, quick) for shape, tokens, step in cells()]
        steps = [step(shape, rows, quick) for shape in SHAPES for rows in (1, 8)]
        return "\n".join([*head(), *layers, "", *adapted_head(), *steps]) + "\n"
    finally:
        torch.set_num_threads(threads)


def head() -> list[str]:
    return [
        f"CPU time of one layer in microseconds, width {SHAPES[0][2]}, float32, one thread: medians of {ROUNDS} rounds "
        "in turns. Last: the time of transformers' best over ours in the same round, and an interval of its median.",
        "",
        f"| experts, chosen, inner, tokens | {' | '.join(PEERS)} | moesaic | best / moesaic |",
        f"|---|{'---|' * len(PEERS)}---|---|",
    ]


def cells() -> list[tuple[tuple[int, int, int, int], int, bool]]:
    """Shape, number of tokens, and whether the gradient is computed too."""
    return [(shape, tokens, False) for shape in SHAPES for tokens in TOKENS] + [(shape, 512, True) for shape in SHAPES]


def line(shape: tuple[int, int, int, int], tokens: int, step: bool, quick: bool) -> str:
    calls = contenders(shape, tokens, step)
    inner = 1 if quick else max(1, LAP // tokens)
    with torch.set_grad_enabled(step):
        times = laps(calls, 3 if quick else ROUNDS, inner, time.process_time)
    medians = {name: statistics.median(own) * 1e6 for name, own in times.items()}
    best = min(times.keys() - {"ours"}, key=medians.__getitem__)
    ratios = sorted(peer / own for peer, own in zip(times[best], times["ours"], strict=True))
    low, high = (0, len(ratios) - 1) if quick else WITHIN
    found = f"{statistics.median(ratios):.2f} ({ratios[low]:.2f} to {ratios[high]:.2f}), {best}"
    experts, chosen, _, width = shape
    what = f"{experts}, {chosen}, {width}, {tokens}{' and gradient' if step else ''}"
    shown = (f"{medians[name]:.0f}" if name in medians else "-" for name in (*PEERS, "ours"))
    return f"| {what} | {' | '.join(shown)} | {found} |"


def contenders(
    shape: tuple[int, int, int, int], tokens: int, step: bool, like: Tensor | None = None
) -> dict[str, Callable[[], object]]:
    """Calls of each implementation with equal weights, after a check that they agree.

    `like`: of the type and on the device to compute in (default: float32 on the CPU).
    """
    experts, chosen, width, inner = shape
    like = torch.zeros(()) if like is None else like
    near = 1e-4 if like.dtype == torch.float32 else 5e-2
    sizes = {"vocab_size": 8, "hidden_size": width, "num_heads": 4, "num_kv_heads": 4, "context": 8}
    ours = SparseFFN(
        DecoderConfig(**sizes, num_layers=1, intermediate_size=inner, num_experts=experts, experts_per_token=chosen)
    )
    generator = torch.Generator().manual_seed(0)
    for weight in ours.parameters():
        nn.init.normal_(weight, 0, width**-0.5, generator)
    ours = ours.to(like.device, like.dtype)
    x = torch.randn(1, tokens, width, generator=generator).to(like).requires_grad_(step)
    found: dict[str, Callable[[], object]] = {}
    for name in [name for name, most in PEERS.items() if tokens <= most]:
        config = MixtralConfig(
            hidden_size=width, intermediate_size=inner, num_local_experts=experts, num_experts_per_tok=chosen
        )
        config._experts_implementation = name
        peer = MixtralSparseMoeBlock(config).to(like.device, like.dtype).eval()
        peer.load_state_dict(ours.state_dict())
        torch.testing.assert_close(peer(x), ours(x, None)[0], rtol=near, atol=near)
        found[name] = called(peer, lambda model: model(x), step)
    return {**found, "ours": called(ours, lambda model: model(x, None)[0], step)}


def called(model: nn.Module, forward: Callable[[nn.Module], Tensor], step: bool) -> Callable[[], object]:
    def both() -> None:
        model.zero_grad()
        forward(model).sum().backward()

    return both if step else lambda: forward(model)


def adapted_head() -> list[str]:
    return [
        f"CPU time of a step of decoding in microseconds, {LAYERS} layers, without adapters and with LoRA of rank "
        f"{RANK} beside all matrices of the experts: no row chose one, all the same, each one of {ADAPTERS}. "
        "In brackets: the time over that without, in the same round, its median.",
        "",
        "| experts, chosen, inner, rows | without | chosen by none | one for all | one for each |",
        "|---|---|---|---|---|",
    ]


def step(shape: tuple[int, int, int, int], rows: int, quick: bool) -> str:
    calls = steps(shape, rows)
    with torch.no_grad():
        times = laps(calls, 3 if quick else 5 * ROUNDS, 1 if quick else 4, time.process_time)
    shown = []
    for own in times.values():
        ratio = statistics.median(one / plain for one, plain in zip(own, times["without"], strict=True))
        shown.append(f"{statistics.median(own) * 1e6:.0f} ({ratio:.2f})")
    experts, chosen, _, inner = shape
    return f"| {experts}, {chosen}, {inner}, {rows} | {' | '.join(shown)} |".replace(" (1.00)", "", 1)


@torch.no_grad()
def steps(shape: tuple[int, int, int, int], rows: int) -> dict[str, Callable[[], object]]:
    """Steps of decoding of one decoder, without adapters and with them."""
    experts, chosen, width, inner = shape
    sizes = {"vocab_size": 2048, "hidden_size": width, "num_heads": 6, "num_kv_heads": 2, "context": 64}
    config = DecoderConfig(
        **sizes, num_layers=LAYERS, intermediate_size=inner, num_experts=experts, experts_per_token=chosen
    )
    plain, adapted = (initialise(Decoder(config), torch.Generator().manual_seed(0)).eval() for _ in range(2))
    attach(adapted, [toy_expert(adapted, seed, RANK, OF_EXPERTS) for seed in range(ADAPTERS)])
    each = torch.eye(ADAPTERS)[torch.arange(rows) % ADAPTERS]
    like = plain.norm.weight
    return {
        "without": stepping(plain, None, rows),
        "none": stepping(adapted, Gates.one(-1, rows, ADAPTERS, like), rows),
        "all": stepping(adapted, Gates.one(0, rows, ADAPTERS, like), rows),
        "each": stepping(adapted, Gates.of(each), rows),
    }


def stepping(decoder: Decoder, gates: Gates | None, rows: int) -> Callable[[], object]:
    cache = Cache.empty(decoder.config, rows, KNOWN + 1, like=decoder.norm.weight)
    decoder(torch.ones(rows, KNOWN, dtype=torch.long), cache, gates)
    cache, token = cache.advance(KNOWN), torch.ones(rows, 1, dtype=torch.long)
    return lambda: decoder(token, cache, gates)
