"""Property: does a mixture of adapters take the memory of its base and its experts, once, and next to nothing else?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from held_memory import HELD_BYTES

import moesaic
from moesaic.adapters import LoRA
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import save_base
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.compose.mixture import load_mixture, save_mixture
from moesaic.config import DecoderConfig
from moesaic.files import MANIFEST
from moesaic.model.decoder import Decoder, initialise
from moesaic.routing import Selection
from moesaic.routing.routers import MLPRouter
from moesaic.testing import toy_expert

NAMES = ("one", "two", "three", "four")
SIZES = {"vocab_size": 8000, "hidden_size": 1024, "num_layers": 12, "num_heads": 16, "num_kv_heads": 4}

LOADING = (
    HELD_BYTES
    + """
import json, sys
from pathlib import Path
import torch
import moesaic
torch.set_num_threads(1)
def text(folder):
    mixture = moesaic.load(folder)
    return mixture, mixture.generate("the sum of two and two", max_new_tokens=8)
text(sys.argv[2])  # what is imported, and the pages of libraries
before = held_bytes()
mixture, made = text(sys.argv[1])
print(json.dumps({"grown": held_bytes() - before, "weights": made.routing.weights}))
"""
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, tokenizer) -> Path:
    """A base of 574 MB, four experts of rank 16 at every linear, and a router that weighs them all."""
    folder = tmp_path_factory.mktemp("large")
    for name in ("base", *NAMES, "router", "mixture"):
        (folder / name).mkdir()
    config = DecoderConfig(**SIZES, intermediate_size=2816, context=512)
    decoder = initialise(Decoder(config), torch.Generator().manual_seed(0))
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint = json.loads((folder / "base" / MANIFEST).read_text())["fingerprint"]
    for seed, name in enumerate(NAMES):
        save_expert(folder / name, toy_expert(decoder, seed, rank=16), fingerprint, {})
    router = MLPRouter(SIZES["hidden_size"], len(NAMES), [8]).eval()
    stored = StoredRouter(router, "mlp", NAMES, "hidden_mean", Selection(kind="soft"), {})
    save_router(folder / "router", stored, fingerprint, {})
    save_mixture(
        folder / "mixture",
        folder / "base",
        {name: folder / name for name in NAMES},
        folder / "router",
        {"site": "linear"},
    )
    return folder / "mixture"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="memory is measured as Linux tells it")
def test_a_mixture_takes_its_base_its_experts_and_a_twentieth_more(mixture, parts):
    environment = {**os.environ, "PYTHONPATH": str(Path(moesaic.__file__).parents[1])}
    command = [sys.executable, "-c", LOADING, str(mixture), str(parts.folder / "mixture")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    base, *experts = (path.stat().st_size for path in sorted(mixture.rglob("*model.safetensors")))
    assert base > 500e6 and len(experts) == len(NAMES) and all(told["weights"].values())
    print(f"{base / 1e6:.0f} MB of base, {sum(experts) / 1e6:.0f} of experts: {told['grown'] / 1e6:.0f} resident")
    assert told["grown"] <= 1.05 * (base + sum(experts))


def test_the_experts_of_a_mixture_are_those_in_its_stacks_and_what_was_saved(parts):
    found = load_mixture(parts.folder / "mixture")
    stacks = {id(p): p.untyped_storage().data_ptr() for p in found.model.parameters()}
    for name, expert in found.experts.items():
        assert isinstance(expert.adapter, LoRA)
        for path, pair in parts.experts[name].pairs.items():
            for mine, saved in zip(expert.lora.pairs[path], pair, strict=True):
                assert mine.equal(saved) and mine.untyped_storage().data_ptr() in stacks.values()
        manifest = json.loads((parts.folder / name / MANIFEST).read_text())
        assert expert.fingerprint == manifest["fingerprint"]
