"""One card: what mixtures say there against the CPU, their speed as a share of the card's own, and their memory.

Sizes are those of llama-3.2-1b with random weights. Meant for twelve minutes at most. Without a card the page says so.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.page import Bar, Section
from moesaic.adapters import LoRA, attach, feedforward
from moesaic.adapters.feedforward import FFN
from moesaic.compose.plan import plan
from moesaic.config import DecoderConfig, published
from moesaic.model.decoder import Decoder, initialise
from moesaic.nn import Cache
from moesaic.routing import Gates

NOT_RUN = "not run: no card was available\n"
NAME, EXPERTS, RANK, TARGETS = "llama-3.2-1b", 4, 8, ["q_proj", "k_proj", "v_proj", "o_proj"]
SPARSE = {"num_experts": 8, "experts_per_token": 2, "expert_size": 4096}
"""Two experts of half the size for each token: as many active parameters as the dense model."""

TINY: dict[str, Any] = {"vocab_size": 256, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
TINY |= {"intermediate_size": 128, "context": 256}

Step = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `copied`: bytes of the tensor whose copy gives the bandwidth; `square`: of a matrix."""

    config: DecoderConfig
    sparse: DecoderConfig
    device: torch.device
    dtype: torch.dtype
    prompt: int
    steps: int
    copied: int
    square: int


def sizes_of(quick: bool) -> Sizes:
    if quick:
        config = DecoderConfig(**TINY)
        sparse = replace(config, **{**SPARSE, "expert_size": 64})
        return Sizes(config, sparse, torch.device("cpu"), torch.float32, 16, 3, 2**16, 64)
    config = replace(published(NAME), context=8192)
    sparse = replace(config, **SPARSE)
    return Sizes(config, sparse, torch.device("cuda"), torch.bfloat16, 2048, 64, 2**31, 8192)


def report(quick: bool) -> str:
    if not quick and not torch.cuda.is_available():
        return NOT_RUN
    sizes = sizes_of(quick)
    bandwidth, rate = limits(sizes)
    sections = [agreement(sizes), *speeds(sizes, bandwidth, rate), blocks(sizes, quick), memory(sizes, quick)]
    card = "the CPU, at tiny sizes" if quick else torch.cuda.get_device_name()
    own = f"copies at {bandwidth / 1e9:.0f} GB/s, matrices at {rate / 1e12:.2f} TFLOP/s"
    return "\n".join([f"On {card}: {own}, {told(sizes.dtype)}.\n", *map(str, sections)])


def told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finish(device: torch.device) -> None:
    """Wait for a card; the CPU has always finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(calls: dict[str, Step], device: torch.device, rounds: int = 5) -> dict[str, float]:
    """Median seconds of a call of each, in turns, after one round for nothing."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            finish(device)
            started = time.perf_counter()
            call()
            finish(device)
            found[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def limits(sizes: Sizes) -> tuple[float, float]:
    """Bytes that a copy reads and writes in a second, and operations of a product of square matrices."""
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    square = torch.zeros(sizes.square, sizes.square, dtype=sizes.dtype, device=sizes.device)
    calls: dict[str, Step] = {"copy": lambda: target.copy_(source), "matrix": lambda: square @ square}
    times = timed(calls, sizes.device)
    return 2 * sizes.copied / times["copy"], 2 * sizes.square**3 / times["matrix"]


# --- models -----------------------------------------------------------------------------------------------------------

KINDS = ("base", "linear", "ffn", "sparse")


def model(kind: str, config: DecoderConfig, sizes: Sizes) -> Decoder:
    """A decoder of random weights on the device; with experts where its kind has some."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(sizes.dtype)
    try:
        with sizes.device:
            decoder = Decoder(config)
            generator = torch.Generator(sizes.device).manual_seed(0)
            initialise(decoder, generator)
            if kind == "linear":
                attach(decoder, [adapter(decoder, generator) for _ in range(EXPERTS)])
            elif kind == "ffn":
                feedforward.attach(decoder, [FFN.of(decoder, range(config.num_layers)) for _ in range(EXPERTS)])
    finally:
        torch.set_default_dtype(before)
    return decoder.eval()


def adapter(decoder: Decoder, generator: torch.Generator) -> LoRA:
    made = LoRA.fresh(decoder, RANK, 2.0 * RANK, TARGETS, range(decoder.config.num_layers), generator)
    for _, b in made.pairs.values():
        b.normal_(0, 0.01, generator=generator)
    return made


def config_of(kind: str, sizes: Sizes) -> DecoderConfig:
    return sizes.sparse if kind == "sparse" else sizes.config


def gates_of(kind: str, decoder: Decoder, rows: int) -> Gates | None:
    """An expert for each row, one after another."""
    if kind not in ("linear", "ffn"):
        return None
    chosen = torch.eye(EXPERTS)[torch.arange(rows) % EXPERTS]
    return Gates.of(chosen.to(decoder.norm.weight)).ready(feedforward.groups(decoder))


def prompt(rows: int, tokens: int, config: DecoderConfig, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(config.vocab_size, (rows, tokens), generator=generator).to(device)


def prefilled(decoder: Decoder, ids: Tensor, spare: int, gates: Gates | None) -> tuple[Tensor, Cache]:
    """The most probable next tokens, and the cache behind the prompts."""
    rows, tokens = ids.shape
    cache = Cache.empty(decoder.config, rows, tokens + spare, decoder.norm.weight)
    return following(decoder, ids, cache, gates), cache.advance(tokens)


def following(decoder: Decoder, ids: Tensor, cache: Cache, gates: Gates | None) -> Tensor:
    x, _ = decoder.run(decoder.embed_tokens(ids), cache, range(decoder.config.num_layers), gates)
    return decoder.head(x[:, -1:], gates)[:, 0].argmax(-1)


def written(decoder: Decoder, ids: Tensor, steps: int, gates: Gates | None) -> list[Tensor]:
    chosen, cache = prefilled(decoder, ids, steps, gates)
    found = [chosen]
    for _ in range(steps):
        chosen = following(decoder, chosen[:, None], cache, gates)
        cache = cache.advance(1)
        found.append(chosen)
    return found


# --- sections ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def agreement(sizes: Sizes) -> Section:
    """Logits of tiny models in float32 here and on the device."""
    config = DecoderConfig(**TINY)
    exact = replace(sizes, config=config, sparse=replace(config, **{**SPARSE, "expert_size": 64}), dtype=torch.float32)
    bars = []
    for kind in KINDS:
        here = model(kind, config_of(kind, exact), replace(exact, device=torch.device("cpu")))
        ids = prompt(EXPERTS, 16, here.config, torch.device("cpu"))
        expected = here(ids, None, gates_of(kind, here, EXPERTS)).logits
        there = here.to(sizes.device)
        found = there(ids.to(sizes.device), None, gates_of(kind, there, EXPERTS)).logits.cpu()
        apart = float((found - expected).abs().max() / expected.abs().max())
        bars.append(
            Bar(f"{kind}: largest difference of a logit", "at most 1e-4 of the largest", f"{apart:.1e}", apart <= 1e-4)
        )
    return Section("As on the CPU", f"Two layers of {TINY['hidden_size']}, float32, an expert for each row.", bars)


@torch.inference_mode()
def speeds(sizes: Sizes, bandwidth: float, rate: float) -> list[Section]:
    """Decoding of one row and of eight, and reading a prompt, by kind."""
    rows, steps, shares = (1, 8), dict[tuple[str, int], float](), list[str]()
    prompts = list[str]()
    for kind in KINDS:
        decoder = model(kind, config_of(kind, sizes), sizes)
        for count in rows:
            took = step_of(decoder, gates_of(kind, decoder, count), count, sizes)
            steps[kind, count] = took
            share = read_bytes(decoder, kind, count) / took / bandwidth
            shares.append(f"| {kind} | {count} | {took * 1e3:.2f} ms | {count / took:.0f} | {share:.2f} |")
        if kind == "linear":
            idle = Gates.of(torch.zeros(1, EXPERTS, device=sizes.device, dtype=sizes.dtype))
            steps["none", 1] = step_of(decoder, idle, 1, sizes)
        ids, gates = prompt(1, sizes.prompt, decoder.config, sizes.device), gates_of(kind, decoder, 1)
        took = timed({"prefill": lambda: prefilled(decoder, ids, 0, gates)}, sizes.device)["prefill"]  # noqa: B023
        share = 2 * active(decoder, kind, 1) * sizes.prompt / took / rate
        prompts.append(f"| {kind} | {took * 1e3:.1f} ms | {sizes.prompt / took:.0f} | {share:.2f} |")
        del decoder
    peers = peers_of(sizes, bandwidth)
    base = steps["base", 1]
    share = read_bytes_of(sizes) / base / bandwidth
    bars = [
        Bar("decoding of one row, share of the copy bandwidth", "at least 0.70", f"{share:.2f}", share >= 0.70),
        *(ratio(name, steps[key], base, most) for name, key, most in RATIOS),
    ]
    head = "| model | rows | step | tokens a second | share of copy bandwidth |\n|---|---|---|---|---|\n"
    heads = "| model | prompt | tokens a second | share of matrix rate |\n|---|---|---|---|\n"
    text = f"After {sizes.prompt} tokens, medians of {sizes.steps} steps.\n\n{head}" + "\n".join([*shares, *peers])
    reading = f"One prompt of {sizes.prompt} tokens.\n\n{heads}" + "\n".join(prompts)
    return [Section("Decoding", text, bars), Section("Reading a prompt", reading, [])]


RATIOS = (
    ("an adapter, one row, against the base", ("linear", 1), 1.15),
    ("adapters attached, none active, against the base", ("none", 1), 1.02),
)


def ratio(name: str, took: float, base: float, most: float) -> Bar:
    return Bar(name, f"at most {most:.2f}", f"{took / base:.2f}", took / base <= most)


def step_of(decoder: Decoder, gates: Gates | None, rows: int, sizes: Sizes) -> float:
    """Median seconds of a step after the prompt, which reads the tokens that were chosen, as a flight does."""
    chosen, cache = prefilled(decoder, prompt(rows, sizes.prompt, decoder.config, sizes.device), sizes.steps, gates)
    laps = [time.perf_counter()]
    for _ in range(sizes.steps):
        chosen = following(decoder, chosen[:, None], cache, gates)
        cache = cache.advance(1)
        chosen.tolist()
        laps.append(time.perf_counter())
    return statistics.median(end - start for start, end in pairwise(laps))


def active(decoder: Decoder, kind: str, rows: int) -> int:
    """Parameters that multiply a token of some of these rows; of a sparse model and one row, those of its experts."""
    config, total = decoder.config, sum(weight.numel() for weight in decoder.parameters())
    block = 3 * config.hidden_size * (config.expert_size or config.intermediate_size) * config.num_layers
    if kind == "sparse":
        asked = min(config.num_experts, rows * config.experts_per_token)
        return total - (config.num_experts - asked) * block
    if kind == "ffn":
        return total - block * (EXPERTS + 1 - min(EXPERTS, rows))
    return total


def read_bytes(decoder: Decoder, kind: str, rows: int) -> int:
    return active(decoder, kind, rows) * decoder.norm.weight.itemsize


def read_bytes_of(sizes: Sizes) -> int:
    with torch.device("meta"):
        decoder = Decoder(sizes.config)
    return sum(weight.numel() for weight in decoder.parameters()) * sizes.dtype.itemsize


def peers_of(sizes: Sizes, bandwidth: float) -> list[str]:
    """Rows of the table for `transformers` on the same shape, and for PEFT beside it, where they are installed."""
    if importlib.util.find_spec("transformers") is None:
        return ["| transformers | | not installed | | |"]
    peer = transformers_model(sizes)
    took = peer_step(peer, sizes)
    share = read_bytes_of(sizes) / took / bandwidth
    lines = [f"| transformers | 1 | {took * 1e3:.2f} ms | {1 / took:.0f} | {share:.2f} |"]
    if importlib.util.find_spec("peft") is None:
        return [*lines, "| peft | | not installed | | |"]
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(peer, LoraConfig(r=RANK, target_modules=TARGETS, lora_alpha=2 * RANK)).eval()
    took = peer_step(adapted, sizes)
    return [*lines, f"| peft, one adapter | 1 | {took * 1e3:.2f} ms | {1 / took:.0f} | |"]


def transformers_model(sizes: Sizes) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    own = sizes.config
    config = LlamaConfig(
        vocab_size=own.vocab_size,
        hidden_size=own.hidden_size,
        num_hidden_layers=own.num_layers,
        num_attention_heads=own.num_heads,
        num_key_value_heads=own.num_kv_heads,
        intermediate_size=own.intermediate_size,
        max_position_embeddings=own.context,
        tie_word_embeddings=own.tie_embeddings,
    )
    return LlamaForCausalLM(config).to(sizes.device, sizes.dtype).eval()


def peer_step(peer: Any, sizes: Sizes) -> float:
    ids = prompt(1, sizes.prompt, sizes.config, sizes.device)
    out = peer(ids, use_cache=True, logits_to_keep=1)
    laps = [time.perf_counter()]
    for _ in range(sizes.steps):
        chosen = out.logits[:, -1].argmax(-1)
        out = peer(chosen[:, None], past_key_values=out.past_key_values, use_cache=True)
        chosen.tolist()
        laps.append(time.perf_counter())
    return statistics.median(end - start for start, end in pairwise(laps))


BLOCKS = [(8, 2, 2048, 4096), (64, 8, 2048, 1024)]
"""Experts, chosen, width and inner width of sparse layers."""


@torch.inference_mode()
def blocks(sizes: Sizes, quick: bool) -> Section:
    """A sparse layer against every implementation of transformers."""
    title, bars = "Sparse layers", []
    if importlib.util.find_spec("transformers") is None:
        return Section(title, "transformers is not installed.", [])
    from benchmarks.sparse import contenders

    like = torch.zeros((), dtype=sizes.dtype, device=sizes.device)
    for shape in [(4, 2, 64, 64)] if quick else BLOCKS:
        for tokens in (8,) if quick else (1, 64, 512):
            times = timed({**contenders(shape, tokens, False, like)}, sizes.device, rounds=9)
            own = times.pop("ours")
            best = min(times, key=times.__getitem__)
            what = f"experts, chosen, width, inner {shape}, {tokens} tokens: {best} / moesaic"
            bars.append(Bar(what, "at least 1.00", f"{times[best] / own:.2f}", times[best] >= own))
    return Section(title, f"The fastest implementation of transformers over ours, {told(sizes.dtype)}.", bars)


@torch.inference_mode()
def memory(sizes: Sizes, quick: bool) -> Section:
    """What the allocator says of the base and of four prompts, beside the plan."""
    title = "Memory against the plan"
    if quick:
        return Section(title, "Only a card's allocator says this.", [])
    rows, tokens = 4, 1024
    planned = plan(NAME, batch=rows, context=tokens, dtype=told(sizes.dtype))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    decoder = model("base", published(NAME), sizes)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() - before
    prefilled(decoder, prompt(rows, tokens, decoder.config, sizes.device), 0, None)
    peak = torch.cuda.max_memory_allocated() - before
    found = (("loaded", held, planned.resident), ("reading", peak, planned.resident + planned.working))
    bars = [
        Bar(
            f"{name}, {own:,} bytes",
            f"{said:,} of the plan, within 5%",
            f"{own / said:.3f}",
            abs(own / said - 1) <= 0.05,
        )
        for name, own, said in found
    ]
    return Section(title, f"{NAME}, {rows} prompts of {tokens} tokens.", bars)
