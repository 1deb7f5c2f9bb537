"""Property: does a composition take the memory that was planned for it, as the operating system measures it?"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from held_memory import HELD_BYTES

from moesaic.adapters import LoRA
from moesaic.adapters.feedforward import FFN
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import identify, save_base
from moesaic.artefacts.ffn import save_ffn
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.artefacts.whole_model import save_whole
from moesaic.compose.mixture import save_mixture
from moesaic.compose.plan import plan
from moesaic.config import DecoderConfig
from moesaic.files import disk
from moesaic.model.decoder import Decoder, initialise
from moesaic.routing import Selection
from moesaic.routing.routers import MLPRouter
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.shards import write_shards
from moesaic.tensors.tensors import read_tensors
from moesaic.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")]

MEASURE = (
    HELD_BYTES
    + """
import sys
import tokenizers, torch
import moesaic
from moesaic.generate import engine, loaded
from moesaic.model import decoder
from moesaic.compose import mixture
from moesaic.interop import pretrained

torch.set_num_threads(1)

def warm_up():  # what the libraries take for themselves when they first compute
    torch.nn.functional.scaled_dot_product_attention(*[torch.rand(1, 4, 8, 16)] * 3)
    (torch.rand(64, 1024) @ torch.rand(1024, 4096)).softmax(-1).sort()

warm_up()
before = held_bytes()
if sys.argv[1] == "mixture":
    held = moesaic.load(sys.argv[2])
    held.generate("one two three", max_new_tokens=4)
else:
    held = moesaic.load_model(sys.argv[2])
    with torch.inference_mode():
        held(torch.arange(32)[None])
print(held_bytes() - before)
"""
)

CONFIG = DecoderConfig(
    vocab_size=16000, hidden_size=1024, num_layers=10, num_heads=16, num_kv_heads=4, intermediate_size=4096, context=512
)
TOLERANCE = 0.03


def measured(kind: str, folder: Path) -> int:
    command = [sys.executable, "-c", MEASURE, kind, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 670 MB; mixtures of it with four adapters, with blocks of an expert, and with another model."""
    folder = tmp_path_factory.mktemp("large")
    decoder = initialise(Decoder(CONFIG), torch.Generator().manual_seed(0))
    tokenizer = Tokenizer.train(["one two three four"], 300)
    disk.make_all(folder / "base")
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint, generator = identify(decoder, tokenizer), torch.Generator().manual_seed(1)
    experts = {}
    for name in ("a", "b", "c", "d"):
        lora = LoRA.fresh(decoder, 16, 32.0, ["q_proj", "v_proj", "gate_proj", "down_proj"], range(10), generator)
        experts[name] = folder / name
        disk.make_all(folder / name)
        save_expert(folder / name, lora, fingerprint, {})
    compose(folder, "linear", experts, fingerprint)
    blocks = FFN.of(decoder, range(10))
    for part in (part for block in blocks.blocks.values() for part in block):
        part.add_(0.01)
    disk.make_all(folder / "ffn")
    save_ffn(folder / "ffn", blocks, fingerprint, {})
    compose(folder, "blocks", {"ffn": folder / "ffn"}, fingerprint, site="ffn")
    for layer in decoder.layers:
        with torch.no_grad():
            layer.mlp.up_proj.weight.add_(0.01)
    disk.make_all(folder / "whole")
    save_whole(folder / "whole", decoder, tokenizer, fingerprint, {})
    compose(folder, "models", {"whole": folder / "whole"}, fingerprint, site="model")
    return folder


def compose(folder: Path, name: str, experts: dict[str, Path], fingerprint: str, site: str = "linear") -> None:
    """A mixture of experts that lie there already, all of which answer every row."""
    router = folder / f"router-{name}"
    disk.make_all(router)
    mlp = MLPRouter(CONFIG.hidden_size, len(experts), [64])
    save_router(router, StoredRouter(mlp, "mlp", tuple(experts), "hidden_mean", Selection(), {}), fingerprint, {})
    disk.make_all(folder / name)
    facts = {"name": name, "site": site, "level": "sequence", "prompt_tokens": 64}
    facts |= {"combine": "mixture"} if site == "model" else {}
    save_mixture(folder / name, folder / "base", experts, router, facts)


@pytest.mark.parametrize("name", ["linear", "blocks", "models"])
def test_a_mixture_takes_what_was_planned(folder: Path, name: str) -> None:
    found = plan(folder / name)
    assert found.resident > 500e6 and found.compatible
    assert measured("mixture", folder / name) == pytest.approx(found.resident, rel=TOLERANCE)


def test_a_decoder_takes_what_was_planned(folder: Path) -> None:
    found = plan(folder / "base")
    assert found.resident > 500e6
    assert measured("model", folder / "base") == pytest.approx(found.resident, rel=TOLERANCE)


def test_a_decoder_in_several_files_takes_what_was_planned(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    disk.make_all(sharded)
    write_shards(sharded, read_tensors(folder / "base" / TENSORS), limit=200_000_000)
    disk.copy(folder / "base" / "config.json", sharded / "config.json")
    found = plan(sharded)
    assert found.resident == plan(folder / "base").resident
    assert measured("model", sharded) == pytest.approx(found.resident, rel=TOLERANCE)
