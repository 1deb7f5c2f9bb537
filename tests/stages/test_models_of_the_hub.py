"""Journey: a run whose base and expert lie on a hub: named once, asked for once, on record, and sound
wherever it moves.
"""

import json
import shutil

import pytest
import torch
import yaml

import moesaic
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.recipe import parse, read
from moesaic.runs.progress import Silent
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

RECIPE = {
    "name": "far",
    "workers": 1,
    "base": {"path": "org/base"},
    "train": {"steps": 2, "batch": 2, "length": 48, "lr": 1e-2, "evaluate_every": 0},
    "experts": {
        "near": {"kind": "lora", "rank": 2, "data": {"train": "near.jsonl", "test": "test.jsonl"}},
        "far": {"kind": "lora", "path": "org/adapter@v1", "examples": "far.jsonl"},
    },
    "router": {"kind": "centroid", "feature": "embedding_mean"},
    "evaluate": {"controls": ["base"], "samples": 0, "limit": 2},
}


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


@pytest.fixture
def commits(hub, tmp_path) -> dict[str, str]:
    """A base and an adapter of it on the hub, by where they go in a mixture; and texts in the folder of the recipe."""
    texts = {"near": "one and two make three", "far": "the owl sings at night", "test": "two and two make four"}
    for name, text in texts.items():
        rows = [json.dumps({"prompt": f"{text} {n}", "response": f"so it is {n}"}) for n in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    tokenizer = Tokenizer.train(texts.values(), 280)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    save_base(tmp_path / "base", decoder, tokenizer, {})
    fingerprint = load_base(tmp_path / "base").fingerprint
    save_expert(tmp_path / "adapter", toy_expert(decoder, 1), fingerprint, {})
    found = {"base": hub.put("org/base", files(tmp_path / "base"))}
    found["far"] = hub.put("org/adapter", files(tmp_path / "adapter"), "v1")
    for name in ("base", "adapter"):
        shutil.rmtree(tmp_path / name)
    return found


@pytest.mark.slow
def test_a_run_keeps_ids_asks_once_tells_commits_and_moves(hub, commits, tmp_path, monkeypatch):
    recipe, told = parse(RECIPE, (), tmp_path / "recipe.yaml"), Notes()
    moesaic.run(recipe, tmp_path / "run", told)
    asked = [line for line in hub.asked if "/revision/" in line or line.endswith(("/org/base", "/org/adapter"))]
    assert len(asked) == 4, "each place once, by us and by the client; not again by any process of the pool"
    assert any(f"base: org/base@main, commit {commits['base'][:12]} (" in note for note in told.notes)

    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["base"]["path"] == "org/base@main" and written["experts"]["far"]["path"] == "org/adapter@v1"
    base, far = (
        {"place": "org/base@main", "commit": commits["base"]},
        {"place": "org/adapter@v1", "commit": commits["far"]},
    )
    assert read_manifest(tmp_path / "run" / "experts" / "near" / "best")["base_origin"] == base
    assert read_manifest(tmp_path / "run" / "router")["base_origin"] == base
    assert read_manifest(tmp_path / "run" / "mixture")["origins"] == {"base": base, "far": far}
    hub.put("me/there", {})
    moesaic.load(tmp_path / "run").push_to_hub("me/there")
    card = hub.repositories["me/there"].branches["main"]["README.md"].decode()
    assert "base_model: org/base" in card and f"from `org/adapter@v1` at commit `{commits['far']}`" in card
    assert moesaic.read_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["verdict"]["sentence"].split(":")[0] in card

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    moved, again = shutil.move(tmp_path / "run", tmp_path / "elsewhere"), Notes()
    moesaic.run(read(moved / "recipe.yaml"), moved, again)
    finished = {note.partition(":")[0] for note in again.notes if note.endswith("skipped")}
    assert {"near", "router", "mixture", "evaluation"} <= finished


def test_what_the_hub_does_not_have_stops_a_run_before_any_work_by_its_key(hub, commits, tmp_path):
    for key, place in (("experts.far.path", "org/none"), ("base.path", "nowhere")):
        recipe = parse(RECIPE, [f"{key}={place}"], tmp_path / "recipe.yaml")
        with pytest.raises(WeightsError, match=f"^{key}: no such folder.*: {place}"):
            moesaic.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "experts").exists()


@pytest.mark.slow
def test_adapters_of_the_hub_are_adopted_over_a_base_of_the_hub(hub, commits, tmp_path):
    other = {**hub.repositories["org/adapter"].branches["v1"]}
    hub.put("org/second", other)
    made = moesaic.adopt(["org/adapter@v1", "org/second"], "org/base", tmp_path / "mix")
    assert made.names == ("adapter", "second")
    origins = read_manifest(made.folder)["origins"]
    assert origins["base"] == {"place": "org/base@main", "commit": commits["base"]}
    assert origins["adapter"] == {"place": "org/adapter@v1", "commit": commits["far"]}
    assert read_manifest(made.folder / "router")["base_origin"] == origins["base"]
    hub.put("org/third", other)
    changed = read_manifest(moesaic.amend(tmp_path / "mix", {"x": "org/third"}, drop=["second"]).folder)
    assert changed["origins"].keys() == {"base", "adapter", "x"} and changed["origins"]["base"] == origins["base"]


@pytest.mark.slow
def test_a_mixture_over_a_base_of_the_hub_is_shared_without_it_unless_it_embeds_it(hub, commits, tmp_path):
    hub.put("org/second", {**hub.repositories["org/adapter"].branches["v1"]})
    made = moesaic.adopt(["org/adapter@v1", "org/second"], "org/base", tmp_path / "mix")
    place = f"org/base@{commits['base']}"
    assert read_manifest(made.folder)["base"]["place"] == place and not (made.folder / "base").exists()
    mixture = moesaic.load(tmp_path / "mix")
    expected = mixture.generate("owl", max_new_tokens=4)
    for name, embed in (("me/thin", None), ("me/whole", True)):
        hub.put(name, {})
        mixture.push_to_hub(name, embed=embed)
        copy = mixture.save_pretrained(tmp_path / name, embed=embed)
        pushed = hub.repositories[name].branches["main"]
        assert ("base/model.safetensors" in pushed) == (copy / "base").is_dir() == bool(embed)
        assert moesaic.load(name).generate("owl", max_new_tokens=4) == expected
        assert moesaic.load(copy).generate("owl", max_new_tokens=4) == expected
