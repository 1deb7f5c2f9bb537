"""Property: mixtures of sites `ffn` and `model` give the same logits wherever their folders move, and weigh no more."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from held_memory import HELD_BYTES

import moesaic
from moesaic.artefacts.base import save_base
from moesaic.artefacts.ffn import save_ffn
from moesaic.artefacts.router import load_router, save_router
from moesaic.artefacts.whole_model import save_whole
from moesaic.compose.mixture import load_mixture, save_mixture
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest
from moesaic.model.features import Prompts
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.routing import Gates
from moesaic.testing import prefilled, tiny_decoder, toy_ffn

SITES = ("ffn", "model")


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
    """A mixture of each site: the folders `ffn` and `model`."""
    folder = tmp_path_factory.mktemp("sites")
    experts = {}
    for seed, name in enumerate(("one", "two")):
        for kind in SITES:
            (folder / f"{kind}-{name}").mkdir()
        ffn = toy_ffn(parts.decoder, seed, range(seed, 2))
        save_ffn(folder / f"ffn-{name}", ffn, parts.fingerprint, {"name": name})
        whole = tiny_decoder(seed, torch.float32, num_layers=2 + seed, vocab_size=parts.tokenizer.vocab_size)
        save_whole(folder / f"model-{name}", whole, parts.tokenizer, parts.fingerprint, {"name": name})
        experts[name] = (ffn, whole)
    for kind in SITES:
        where = {name: folder / f"{kind}-{name}" for name in experts}
        facts = {"name": kind, "site": kind, "level": "sequence"}
        save_mixture(folder / kind, parts.folder / "base", where, parts.folder / "router", facts)
    return folder, experts


def prompts(parts) -> Prompts:
    rows = [parts.tokenizer.encode(text) for text in ("the sum of two", "def add")]
    return Prompts.pad(rows, [""] * 2)


@torch.no_grad()
@pytest.mark.parametrize("site", SITES)
def test_saved_moved_and_loaded_it_gives_the_same_logits(parts, made, tmp_path, site):
    folder, batch = shutil.copytree(made[0] / site, tmp_path / "first"), prompts(parts)
    first = load_mixture(folder)
    assert isinstance(first.model, {"ffn": AdapterMixture, "model": ModelMixture}[site])
    assert first.model.names == ("two", "one") and first.model.route(batch).weights.min() > 0
    logits, _ = prefilled(first.model, batch, 4, None)
    shutil.move(folder, tmp_path / "some where" / "else")
    again = load_mixture(tmp_path / "some where" / "else")
    assert prefilled(again.model, batch, 4, None)[0].equal(logits)
    mixture = moesaic.load(tmp_path / "some where" / "else")
    text = mixture.generate("the sum of", max_new_tokens=5)
    mixture.save_pretrained(tmp_path / "copy")
    assert moesaic.load(tmp_path / "copy").generate("the sum of", max_new_tokens=5) == text


@torch.no_grad()
def test_each_expert_answers_as_the_model_it_came_from(parts, made):
    """In the router's order, which is not that of the folder."""
    ids = prompts(parts).ids
    for site, index in (("ffn", 0), ("model", 1)):
        model = load_mixture(made[0] / site).model
        for name, found in made[1].items():
            gates = Gates.one(model.names.index(name), len(ids), 2, torch.zeros(1))
            if site == "model":
                expected = found[index](ids).logits
            else:
                dense = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=parts.tokenizer.vocab_size)
                for path, (gate, up, down) in found[index].blocks.items():
                    slot = dense.get_submodule(path)
                    slot.gate_proj.weight.copy_(gate)
                    slot.up_proj.weight.copy_(up)
                    slot.down_proj.weight.copy_(down.t())
                expected = dense(ids).logits
            torch.testing.assert_close(model.score(ids, gates), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_inspect_says_what_its_experts_are(made, site, capsys):
    from moesaic.cli.artefacts import show

    show(str(made[0] / site), None, as_json=False)
    told = capsys.readouterr().out
    assert {"ffn": "at every feed-forward block", "model": "between whole models"}[site] in " ".join(told.split())
    assert {"ffn": "feed-forward blocks", "model": "a whole model"}[site] in told
    found = moesaic.inspect(made[0] / site)
    assert {part.verified for part in found.parts.values()} == {True}


@pytest.mark.parametrize("site", SITES)
def test_a_flipped_byte_in_any_file_is_refused_by_name(made, tmp_path, site):
    folder = shutil.copytree(made[0] / site, tmp_path / "mixture")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        data = bytearray(whole)
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(WeightsError) as refused:
            load_mixture(folder)
        assert str(path.relative_to(folder)) in str(refused.value.path)
        path.write_bytes(whole)
    load_mixture(folder)


def rewritten(folder, **changes) -> None:
    """A manifest that says something else and is sealed all the same."""
    path = folder / MANIFEST
    fields = json.loads(path.read_text()) | changes
    body = {field: value for field, value in fields.items() if field != "digest"}
    path.write_text(json.dumps(body | {"digest": digest(body)}))


@pytest.mark.parametrize(
    ("site", "changes", "said"),
    [
        ("model", {"site": "heads"}, "site: unknown; expected linear or ffn or model; got heads"),
        ("model", {"level": "layer"}, "level: unknown; expected sequence or token; got layer"),
        ("model", {"combine": "sum"}, "combine: unknown; expected mixture or product; got sum"),
        ("ffn", {"level": "layer"}, "level: unknown; expected sequence or token; got layer"),
        ("ffn", {"site": "model"}, "another kind; expected model; got ffn"),
        ("ffn", {"site": "linear"}, "adapter_config.json"),
        ("model", {"site": "ffn"}, "ffn_config.json"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(made, tmp_path, site, changes, said):
    folder = shutil.copytree(made[0] / site, tmp_path / "mixture")
    rewritten(folder, **changes)
    with pytest.raises(WeightsError, match=said):
        load_mixture(folder)


def test_blocks_at_level_token_need_gates(made, tmp_path):
    folder = shutil.copytree(made[0] / "ffn", tmp_path / "mixture")
    rewritten(folder, level="token")
    with pytest.raises(CompatibilityError, match="does not route tokens inside the layers; expected gates; got mlp"):
        load_mixture(folder)


def test_level_and_combination_are_those_of_the_manifest(parts, made, tmp_path):
    router = load_router(parts.folder / "router")
    (tmp_path / "router").mkdir()
    save_router(tmp_path / "router", replace(router, feature="hidden_last"), parts.fingerprint, {})
    where = {name: made[0] / f"model-{name}" for name in made[1]}
    facts = {"site": "model", "level": "token", "combine": "product"}
    save_mixture(tmp_path / "mixture", parts.folder / "base", where, tmp_path / "router", facts)
    model = load_mixture(tmp_path / "mixture").model
    assert (model.level, model.combine) == ("token", "product")


WEIGH = (
    HELD_BYTES
    + """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from moesaic.compose.mixture import load_mixture
from moesaic.routing import Gates

ids = torch.randint(200, (1, 4))
tiny = load_mixture(Path(sys.argv[2]))
with torch.inference_mode():
    tiny.model.score(ids, Gates.of(torch.full((1, 2), 0.5)))
before = held_bytes()
mixture = load_mixture(Path(sys.argv[1]))
with torch.inference_mode():
    mixture.model.score(ids, Gates.of(torch.full((1, 4), 0.25)))
print(held_bytes() - before)
"""
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("site", SITES)
def test_four_experts_that_share_all_but_their_blocks_weigh_the_base_and_four_times_the_blocks(
    parts, made, tmp_path, site
):
    sizes = {"hidden_size": 512, "num_layers": 4, "num_heads": 8, "num_kv_heads": 8, "intermediate_size": 1536}
    decoder = tiny_decoder(0, torch.float32, vocab_size=parts.tokenizer.vocab_size, **sizes)
    (tmp_path / "base").mkdir()
    save_base(tmp_path / "base", decoder, parts.tokenizer, {})
    fingerprint = json.loads((tmp_path / "base" / MANIFEST).read_text())["fingerprint"]
    names = ("one", "two", "three", "four")
    router = load_router(parts.folder / "router")
    wide = type(router.router)(512, 4, []).eval()
    (tmp_path / "router").mkdir()
    save_router(tmp_path / "router", replace(router, router=wide, names=names), fingerprint, {})
    before = [weight.detach().clone() for weight in decoder.parameters()]
    for seed, name in enumerate(names):
        (tmp_path / name).mkdir()
        ffn = toy_ffn(decoder, seed)
        if site == "ffn":
            save_ffn(tmp_path / name, ffn, fingerprint, {})
            continue
        with torch.no_grad():
            for path, (gate, up, down) in ffn.blocks.items():
                slot = decoder.get_submodule(path)
                slot.gate_proj.weight.copy_(gate)
                slot.up_proj.weight.copy_(up)
                slot.down_proj.weight.copy_(down.t())
            save_whole(tmp_path / name, decoder, parts.tokenizer, fingerprint, {})
            for weight, value in zip(decoder.parameters(), before, strict=True):
                weight.copy_(value)
    where = {name: tmp_path / name for name in names}
    save_mixture(tmp_path / "mixture", tmp_path / "base", where, tmp_path / "router", {"site": site})
    blocks = 4 * 3 * 512 * 1536 * 4
    whole = sum(weight.numel() * 4 for weight in decoder.parameters())
    command = [sys.executable, "-c", WEIGH, str(tmp_path / "mixture"), str(made[0] / site)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert whole + 4 * blocks < found + blocks / 4 < whole + 5 * blocks
