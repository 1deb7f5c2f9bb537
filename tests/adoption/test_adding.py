"""A new domain joins an adopted mixture without the others being touched, and leaves it again."""

import json
from pathlib import Path

import pytest
import torch
from small_domains import TEXTS
from small_runs import Told

import moesaic
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import RecipeError, WeightsError
from moesaic.files import disk
from moesaic.recipe import Recipe, parse
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

OLD = ("birds", "code")
NEW = "sums"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters with prompts, and rows of a third domain."""
    folder = tmp_path_factory.mktemp("adding")
    tokenizer = Tokenizer.train([text for some in TEXTS.values() for text in some], 300)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    for name in ("base", *OLD):
        (folder / name).mkdir()
    save_base(folder / "base", decoder, tokenizer, {})
    for seed, name in enumerate(OLD):
        save_expert(folder / name, toy_expert(decoder, seed), load_base(folder / "base").fingerprint, {"name": name})
        (folder / f"{name}.txt").write_text("\n".join(TEXTS[name]))
    rows = [{"prompt": text, "response": f"{n} it is"} for n, text in enumerate(TEXTS[NEW])]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[8:]))
    return folder


def recipe_in(folder: Path, **expert: object) -> Recipe:
    data = {"train": "sums.jsonl", "validation": 0.2, "test": "test.jsonl"}
    given = {
        **{"name": "new", "workers": 1, "base": {"path": "shipped:tiny"}, "router": {"kind": "linear"}},
        "train": {"steps": 2, "batch": 2, "length": 24, "evaluate_every": 0},
        "experts": {NEW: {"kind": "lora", "rank": 2, "data": data, **expert}},
    }
    return parse(given, (), folder / "recipe.yaml")


def mixture_of(parts: Path, out: Path, prompts: bool = True, embed: bool = False) -> Path:
    given = {name: parts / f"{name}.txt" for name in OLD} if prompts else None
    moesaic.adopt([parts / name for name in OLD], parts / "base", out, prompts=given, embed=embed, abstain="off")
    return out


def files(folder: Path, *under: str) -> dict[str, bytes]:
    at = (folder / "mixture").resolve()
    return {
        path.relative_to(at).as_posix(): path.read_bytes()
        for one in under
        for path in sorted((at / one).rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("embed", [False, True])
def test_it_joins_and_leaves_and_nothing_else_has_changed(embed, parts, tmp_path):
    out = mixture_of(parts, tmp_path / "mine", embed=embed)
    experts, router = files(out, "experts"), files(out, "router")
    prompts = [text for some in TEXTS.values() for text in some]
    before = [one.weights for one in moesaic.load(out).route(prompts)]

    made = moesaic.add_expert(out, recipe_in(parts), progress=Told())
    assert made.names == (*OLD, NEW) and made.router["of"][NEW] == 8
    assert experts.items() <= files(out, "experts").items(), "the others' bytes are as they were"
    assert moesaic.load(out).generate(TEXTS[NEW][0], max_new_tokens=2, expert=NEW).routing.chosen == NEW
    assert moesaic.load(out).route(TEXTS[NEW][9]).chosen == NEW

    moesaic.amend(out, drop=[NEW])
    assert files(out, "experts") == experts
    assert {name: some for name, some in files(out, "router").items() if name != "manifest.json"} == {
        name: some for name, some in router.items() if name != "manifest.json"
    }
    assert [one.weights for one in moesaic.load(out).route(prompts)] == before


def test_a_router_made_from_weights_needs_no_prompts(parts, tmp_path):
    out = mixture_of(parts, tmp_path / "mine", prompts=False)
    made = moesaic.add_expert(out, recipe_in(parts), [NEW], progress=Told())
    assert made.router["kind"] == "arrow" and made.names == (*OLD, NEW)


def test_after_a_crash_the_training_is_not_made_again(parts, tmp_path, monkeypatch):
    out, rename = mixture_of(parts, tmp_path / "mine"), disk.rename

    def broken(source: Path, target: Path) -> None:
        if target == out / "mixture":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(disk, "rename", broken)
    with pytest.raises(KeyboardInterrupt):
        moesaic.add_expert(out, recipe_in(parts), progress=Told())
    assert moesaic.load(out).names == OLD
    monkeypatch.undo()
    told = Told()
    assert moesaic.add_expert(out, recipe_in(parts), progress=told).names == (*OLD, NEW)
    assert f"{NEW}: finished, skipped" in told.notes


def test_what_cannot_join_is_refused_before_anything_is_trained(parts, tmp_path):
    out, recipe = mixture_of(parts, tmp_path / "mine"), recipe_in(parts)
    demo = recipe.model_copy(update={"experts": {NEW: recipe_in(parts, data={"demo": "math"}).experts[NEW]}})
    known = recipe.model_copy(update={"experts": {"Birds": recipe.experts[NEW]}})
    ffn = parse(
        {
            **{"name": "new", "base": {"path": "shipped:tiny"}, "router": {"kind": "linear"}},
            "experts": {NEW: {"kind": "ffn", "data": {"train": "sums.jsonl", "test": "test.jsonl"}}},
        },
        (),
        parts / "recipe.yaml",
    )
    for given, names, said in [
        (recipe, ["nobody"], "trains no such expert"),
        (known, [], "the mixture has an expert of this name"),
        (demo, [], "no file of rows for the router"),
        (ffn, [], "another kind of experts; expected site linear; got site ffn"),
    ]:
        with pytest.raises(RecipeError, match=said):
            moesaic.add_expert(out, given, names)
    with pytest.raises(WeightsError, match="no mixture here"):
        moesaic.add_expert(tmp_path / "nowhere", recipe)
    assert not (out / "training").exists() and not (tmp_path / "nowhere").exists()
