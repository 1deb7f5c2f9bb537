"""A mixture whose experts weigh three times the memory it may take: what the system counts, and what time it costs.

Each way runs in a process of its own that this one watches: RssAnon + RssFile over what they are after all imports and
a first computation, looked at every two milliseconds from before the mixture is loaded until all is written.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moesaic.adapters.feedforward import FFN
from moesaic.artefacts.base import identify, save_base
from moesaic.artefacts.ffn import save_ffn
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.artefacts.whole_model import save_whole
from moesaic.compose.mixture import save_mixture
from moesaic.compose.plan import plan
from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder, initialise
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter
from moesaic.tokenizer import Tokenizer

SMALL = DecoderConfig(
    vocab_size=2000, hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=768, context=256
)
LARGE = DecoderConfig(
    vocab_size=2000, hidden_size=768, num_layers=8, num_heads=12, num_kv_heads=4, intermediate_size=2304, context=256
)
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
TIMES, NEW, ROWS = 3, 16, 2
"""How many times the memory the experts weigh; tokens that are written for each of so many rows of every expert."""

RUN = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
import moesaic
from moesaic.compose import budget
from moesaic.generate import loaded

folder, ram, sorts, limit, prompts, new = json.loads(sys.argv[1])
torch.nn.functional.scaled_dot_product_attention(*[torch.rand(1, 4, 8, 16)] * 3)
(torch.rand(64, 64) @ torch.rand(64, 64)).softmax(-1).sort()
print("ready", flush=True)
sys.stdin.readline()
if limit:
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + limit,) * 2)
mixture = moesaic.load(folder, ram=ram)
if ram and not sorts:
    mixture.stored.source.settled = False
started = time.perf_counter()
made = mixture.generate(prompts, max_new_tokens=new)
seconds, traffic = time.perf_counter() - started, mixture.traffic
facts = [traffic.fetches, traffic.bytes, traffic.hits, traffic.seconds]
print(json.dumps({"seconds": seconds, "traffic": facts, "ids": [one.ids for one in made]}), flush=True)
sys.stdin.readline()
"""


def report(quick: bool) -> str:
    new = 2 if quick else NEW
    lines = [
        f"Greedy, {new} tokens for each of {ROWS} rows of every expert, float32, one thread, files in the page cache. "
        f"The experts weigh {TIMES} times the memory said, in which base, router, caches and activations are too. "
        "Peak: RssAnon + RssFile over what they were before loading. Limit of the system: RLIMIT_AS, the address space "
        "after all imports and the memory said with a twentieth on top.",
        "",
    ]
    for site, experts, base in (("model", 4, SMALL), ("ffn", 9, replace(LARGE, num_layers=4))):
        with tempfile.TemporaryDirectory() as place:
            lines += [*section(Path(place), site, experts, base, new), ""]
    return "\n".join(lines)


def section(folder: Path, site: str, experts: int, base: DecoderConfig, new: int) -> list[str]:
    mixture, prompts = compose(folder, site, WORDS[:experts], base, LARGE if site == "model" else base)
    found = plan(mixture)
    sizes = [part.bytes for part in found.parts if part.role == "expert"]
    ram = sum(sizes) // TIMES
    write = partial(run, mixture, prompts=prompts, new=new)
    whole = write(None)
    ways = {
        "all in memory": whole,
        f"in {ram / 1e6:.0f} MB": write(ram),
        f"in {ram / 1e6:.0f} MB, limited by the system": write(ram, limit=ram + ram // 20),
    }
    if site == "model":  # blocks of several experts are needed in every layer: unsorted rows would not fit at all
        ways[f"in {ram / 1e6:.0f} MB, swapped at every token"] = write(ram, sorts=False)
    assert not does_without(mixture, prompts, ram + ram // 20), "the limit limits nothing"
    lines = [
        f"Site `{site}`: {experts} experts of {sizes[0] / 1e6:.0f} MB beside {found.bytes_of('shared') / 1e6:.0f} MB "
        f"that is always there; {ram / 1e6:.0f} MB said.",
        "",
        "| | peak MB | same tokens | fetches | fetched MB | waited s | seconds | slowdown |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in ways.items():
        fetches, size, _, waited = one["traffic"]
        same, slower = one["ids"] == whole["ids"], one["seconds"] / whole["seconds"]
        lines.append(
            f"| {name} | {one['peak'] / 1e6:.0f} | {'yes' if same else 'NO'} | {fetches} | {size / 1e6:.0f} "
            f"| {waited:.2f} | {one['seconds']:.2f} | {slower:.2f} |"
        )
    return lines


def run(
    folder: Path, ram: int | None, prompts: list[str], sorts: bool = True, limit: int = 0, new: int = NEW
) -> dict[str, Any]:
    """What a process of its own writes, and the most memory that it took meanwhile."""
    process = started(folder, ram, prompts, sorts, limit, new)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == "ready\n"
    before, peak, done = resident(process.pid), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.stdin.write("\n")
    process.stdin.flush()
    told = process.stdout.readline()
    done.set()
    watcher.join()
    said = process.communicate("\n", timeout=60)[1]
    assert process.returncode == 0, said
    return {**json.loads(told), "peak": peak - before}


def does_without(folder: Path, prompts: list[str], limit: int) -> bool:
    """Whether a mixture without a budget finishes under a limit of the system."""
    process = started(folder, None, prompts, True, limit, NEW)
    process.communicate("\n\n", timeout=300)
    return process.returncode == 0


def started(
    folder: Path, ram: int | None, prompts: list[str], sorts: bool, limit: int, new: int
) -> subprocess.Popen[str]:
    asked = json.dumps([str(folder), ram, sorts, limit, prompts, new])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", RUN, asked], text=True, stderr=subprocess.PIPE, **pipes)


def resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(1024 * int(count) for count in re.findall(r"^(?:RssAnon|RssFile):\s+(\d+) kB", text, re.MULTILINE))


def compose(
    folder: Path, site: str, names: tuple[str, ...], base: DecoderConfig, expert: DecoderConfig
) -> tuple[Path, list[str]]:
    """A mixture of experts that are chosen by their names, all of random weights; and prompts for each of them."""
    decoder, tokenizer = fresh(base, 0), Tokenizer.train([f"one two three {' '.join(WORDS)}"], 300)
    for name in ("base", "router", "mixture", *names):
        (folder / name).mkdir()
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint = identify(decoder, tokenizer)
    for seed, name in enumerate(names, 1):
        tuned = fresh(expert, seed)
        if site == "model":
            save_whole(folder / name, tuned, tokenizer, fingerprint, {})
        else:
            save_ffn(folder / name, FFN.of(tuned, range(expert.num_layers)), fingerprint, {})
    router = KeywordRouter([[name] for name in names])
    stored = StoredRouter(router, "keyword", names, "text", Selection(), {})
    save_router(folder / "router", stored, fingerprint, {})
    facts = {"name": site, "site": site, "level": "sequence", **({"combine": "mixture"} if site == "model" else {})}
    experts = {name: folder / name for name in names}
    save_mixture(folder / "mixture", folder / "base", experts, folder / "router", facts)
    return folder / "mixture", [f"one two three {name}" for name in names * ROWS]


def fresh(config: DecoderConfig, seed: int) -> Decoder:
    return initialise(Decoder(config), torch.Generator().manual_seed(seed)).eval()
