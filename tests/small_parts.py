"""One tiny base with its tokenizer, two experts and a router, in memory and on disk."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from moesaic.adapters import LoRA
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.compose.mixture import save_mixture
from moesaic.model.decoder import Decoder
from moesaic.routing import Selection
from moesaic.routing.routers import MLPRouter
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

VOCABULARY = 265


@dataclass(frozen=True)
class Parts:
    """What `folder` holds: base, one, two, router."""

    folder: Path
    decoder: Decoder
    experts: dict[str, LoRA]
    router: MLPRouter
    tokenizer: Tokenizer
    fingerprint: str


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the sum of two and two is four", "def add(a, b): return a + b"], VOCABULARY)


@pytest.fixture(scope="session")
def parts(tmp_path_factory, tokenizer) -> Parts:
    """Written once; tests that change anything take a copy."""
    folder = tmp_path_factory.mktemp("parts")
    for name in ("base", "one", "two", "router", "mixture"):
        (folder / name).mkdir()
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    save_base(folder / "base", decoder, tokenizer, {"seed": 3})
    fingerprint = load_base(folder / "base").fingerprint
    experts = {
        "one": toy_expert(decoder, 1, rank=2),
        "two": toy_expert(decoder, 2, rank=3, targets=["q_proj", "down_proj"], layers=range(1, 2)),
    }
    for name, lora in experts.items():
        save_expert(folder / name, lora, fingerprint, {"name": name})
    torch.manual_seed(0)
    router = MLPRouter(32, 2, [6]).eval()
    router.mean.normal_()
    router.temperature.fill_(0.25)
    stored = StoredRouter(router, "mlp", ("two", "one"), "hidden_mean", Selection(kind="soft"), {})
    save_router(folder / "router", stored, fingerprint, {"seed": 0})
    where = {name: folder / name for name in experts}
    save_mixture(folder / "mixture", folder / "base", where, folder / "router", {"seed": 0})
    return Parts(folder, decoder, experts, router, tokenizer, fingerprint)
