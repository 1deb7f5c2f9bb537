"""Sixteen requests of mixed experts: the scheduler against the same requests one by one, a loop of PEFT, and llama.cpp.

The loop is what a program writes with transformers and PEFT: for each request `set_adapter`, then `generate`. llama.cpp
gets all requests at once, in as many slots, each with its list of adapters. All four write the same number of tokens,
greedily, with the same weights in float32, and take turns in one process.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import xllamacpp
from peft import PeftModel
from transformers import AutoModelForCausalLM

import moesaic
from benchmarks.page import Options, Page, measured_here
from benchmarks.timing import alternate
from moesaic.adapters import LoRA, attach
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import Base, load_base
from moesaic.compose.alone import router_over
from moesaic.compose.export import export
from moesaic.generate import Engine, Request
from moesaic.generate.scheduler import Scheduler
from moesaic.model.mixture import AdapterMixture
from moesaic.tokenizer import Conversation, Tokenizer

NAMES = ("math", "reasoning", "code", "conversation", "knowledge")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REQUESTS, NEW, RANK, ROUNDS = 16, 48, 8, 3
TEXTS = (
    "What is 17 plus 25?",
    "Write a function that adds two numbers and returns the sum, with a docstring that says what it does.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers, and why do people so often answer wrongly?",
    "Book a table for four people in a quiet restaurant near the station for tomorrow evening at seven, please.",
    "Name the capital of France.",
)


@dataclass(frozen=True)
class Endless:
    """A tokenizer whose texts never end, so that all contenders write as many tokens."""

    tokenizer: Tokenizer
    ends: tuple[int, ...] = ()

    def begin(self, prompt: str | Conversation, raw: bool = False) -> list[int]:
        return self.tokenizer.begin(prompt, raw)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


def page(options: Options) -> Page:
    folders = {"the shipped base": Path(moesaic.__file__).parent / "shipped" / "tiny"}
    if named := os.environ.get("MOESAIC_SMOLLM2"):
        folders["SmolLM2-135M-Instruct"] = Path(named)
    new, rounds = (4, 1) if options.quick else (NEW, ROUNDS)
    lines = [
        f"{REQUESTS} requests, {len(NAMES)} experts of rank {RANK} on all targets and the base, {new} greedy tokens "
        f"each, float32. Median of {rounds} rounds in turns. Rates of written tokens, the prompts' time included.",
        "",
        "| base | PEFT loop | llama.cpp | one by one | scheduler | / one by one | / loop | / llama.cpp "
        "| same texts as one by one, as the loop |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, folder in folders.items():
        with tempfile.TemporaryDirectory() as kept:
            lines.append(f"| {name} | {row(folder, Path(kept), new, rounds)} |")
    return measured_here("\n".join(lines) + "\n")


def row(folder: Path, kept: Path, new: int, rounds: int) -> str:
    """The cells of one base: rates, ratios, and how many texts are the same."""
    base = load_base(folder)
    experts = {name: expert(base, seed) for seed, name in enumerate(NAMES)}
    calls = contenders(base, experts, looped(base, experts, folder, kept), new)
    written = {name: call() for name, call in calls.items()}
    times = alternate({**calls, "llama": llama_cpp(folder, kept, new)}, rounds, inner=1)
    rate = {name: f"{REQUESTS * new / seconds:.0f} tok/s" for name, seconds in times.items()}
    same = {
        name: sum(one == two for one, two in zip(written["scheduler"], some, strict=True))
        for name, some in written.items()
    }
    return (
        f"{rate['loop']} | {rate['llama']} | {rate['alone']} | {rate['scheduler']} "
        f"| {times['alone'] / times['scheduler']:.2f} | {times['loop'] / times['scheduler']:.2f} "
        f"| {times['llama'] / times['scheduler']:.2f} | {same['alone']}, {same['loop']} of {REQUESTS}"
    )


def asked() -> list[tuple[str, str]]:
    """The prompt and the expert of every request."""
    choices = [*NAMES, "base"]
    return [(TEXTS[at % len(TEXTS)], choices[at % len(choices)]) for at in range(REQUESTS)]


def llama_cpp(folder: Path, kept: Path, new: int) -> Callable[[], None]:
    """A call that has llama.cpp answer all requests, with the experts that PEFT loads."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(export(folder, kept / "base.gguf", "gguf"))
    adapters = [export(kept / name, kept / f"{name}.gguf", "gguf", base=folder) for name in NAMES]
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 0.0) for file in adapters]
    settings.n_parallel, settings.n_ctx, settings.warmup = REQUESTS, 128 * REQUESTS, False
    settings.cpuparams.n_threads = torch.get_num_threads()
    server, common = xllamacpp.Server(settings), {"max_tokens": new, "temperature": 0, "ignore_eos": True}

    def answer(request: tuple[str, str]) -> None:
        prompt, expert = request
        chosen = [{"id": at, "scale": float(name == expert)} for at, name in enumerate(NAMES)]
        made = server.handle_completions({**common, "prompt": prompt, "cache_prompt": False, "lora": chosen})
        if made["usage"]["completion_tokens"] != new:
            raise RuntimeError(f"llama.cpp wrote {made['usage']['completion_tokens']} tokens of {new}")

    def every() -> None:
        with ThreadPoolExecutor(REQUESTS) as pool:
            for _ in pool.map(answer, asked()):
                pass

    return every


def expert(base: Base, seed: int) -> LoRA:
    """An expert that changes what is written."""
    generator = torch.Generator().manual_seed(seed)
    lora = LoRA.fresh(base.decoder, RANK, 2.0 * RANK, TARGETS, range(base.decoder.config.num_layers), generator)
    for _, b in lora.pairs.values():
        b.normal_(0, 0.02, generator=generator)
    return lora


def looped(base: Base, experts: dict[str, LoRA], folder: Path, kept: Path) -> PeftModel:
    """The same experts over the same base, as PEFT loads them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    peer = None
    for name, lora in experts.items():
        (kept / name).mkdir()
        save_expert(kept / name, lora, base.fingerprint, {"name": name})
        if peer is None:
            peer = PeftModel.from_pretrained(model, kept / name, adapter_name=name)
        else:
            peer.load_adapter(kept / name, adapter_name=name)
    assert peer is not None
    return peer.eval()


def contenders(
    base: Base, experts: dict[str, LoRA], peer: PeftModel, new: int
) -> dict[str, Callable[[], list[list[int]]]]:
    """Calls that answer all requests, each with the ids of every answer."""
    attach(base.decoder, [*experts.values()])
    mixture = AdapterMixture(base.decoder, router_over(NAMES).over(None), 0).eval()
    engine = Engine(mixture, Endless(base.tokenizer))
    requests = [Request(prompt=prompt, expert=expert, max_new_tokens=new) for prompt, expert in asked()]

    def scheduled() -> list[list[int]]:
        scheduler = Scheduler(engine, rows=REQUESTS)
        tickets = [scheduler.submit(request) for request in requests]
        while not scheduler.idle:
            scheduler.step()
        return [ticket.rows[0].ids for ticket in tickets]

    def alone() -> list[list[int]]:
        return [engine.answer([request])[0][0].ids for request in requests]

    @torch.inference_mode()
    def loop() -> list[list[int]]:
        found = []
        for request in requests:
            ids = torch.tensor([base.tokenizer.begin(request.prompt)])
            options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            if request.expert == "base":
                with peer.disable_adapter():
                    made = peer.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            else:
                peer.set_adapter(request.expert)
                made = peer.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            found.append(made[0, ids.shape[1] :].tolist())
        return found

    return {"loop": loop, "alone": alone, "scheduler": scheduled}
