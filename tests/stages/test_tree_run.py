"""Journey: a run whose router is a tree of groups: trained, judged beside flat ones, composed, asked, read again."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_domains import TEXTS

import moesaic
from moesaic.artefacts.router import load_router
from moesaic.compose.composition import described, of_recipe
from moesaic.errors import WeightsError
from moesaic.files import read_manifest, write_manifest
from moesaic.recipe import Recipe, parse, read

GROUPS = {"exact": ["code", "sums"], "text": ["birds"]}
KEYWORDS = {"sums": ["add", "+"], "code": ["def"]}
OWN = ("format_version", "package_version", "files", "digest")
"""What `write_manifest` adds by itself."""
ASKED = {
    "def z(x): return x * 77": "code",
    "add 7 and 7 and say the sum": "sums",
    "the heron sings in the tree": "birds",
}


def recipe_in(folder: Path) -> Recipe:
    trained = {"feature": "characters", "epochs": 60, "lr": 0.01}
    rivals = [{"kind": "keyword", "match": "first"}, {"kind": "keyword"}, {"kind": "linear", **trained}]
    experts: dict[str, Any] = {}
    for name, texts in TEXTS.items():
        for split, some in (("train", texts[:7]), ("test", texts[7:])):
            rows = [json.dumps({"prompt": text, "response": "yes"}) for text in some]
            (folder / f"{name}_{split}.jsonl").write_text("\n".join(rows))
        data = {split: f"{name}_{split}.jsonl" for split in ("train", "test")}
        experts[name] = {"kind": "lora", "rank": 2, "data": data, "keywords": KEYWORDS.get(name)}
    few = {"steps": 2, "batch": 4, "length": 64, "lr": 1e-2, "evaluate_every": 0}
    recipe = {
        "name": "grouped",
        "workers": 1,
        "base": {"size": "nano", "vocab_size": 300, "pretrain": few},
        "train": few,
        "experts": experts,
        "router": {"kind": "tree", "groups": GROUPS, "hidden": [16], **trained, "compare": rivals},
        "evaluate": {"controls": ["base", "keyword"], "samples": 0},
    }
    return parse(recipe, (), folder / "recipe.yaml")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("grouped")
    return folder / "run", moesaic.run(recipe_in(folder), folder / "run")


def test_it_is_scored_beside_the_flat_ones_and_the_first_match_beside_the_counting_one(made):
    tried = {(one["kind"], one["feature"]): one for one in made[1]["router"]["tried"]}
    assert [*tried] == [
        ("tree", "characters"),
        ("keyword, first match", "text"),
        ("keyword", "text"),
        ("linear", "characters"),
    ]
    assert tried["tree", "characters"]["accuracy"] == 1.0 and tried["tree", "characters"]["loss"] == "expert"
    assert tried["keyword, first match", "text"]["accuracy"] == 1.0
    assert "outside" in tried["tree", "characters"], "it abstains as flat ones do"
    assert made[1]["controls"]["keyword"]["nats"]["all"] > 0
    page = (made[0] / "report" / "index.html").read_text()
    assert "keyword, first match" in page


def test_the_mixture_routes_generates_and_is_saved_with_it(made, tmp_path):
    mixture = moesaic.load(made[0])
    assert {text: one.chosen for text, one in zip(ASKED, mixture.route([*ASKED]), strict=True)} == ASKED
    written = mixture.generate([*ASKED], max_new_tokens=2)
    assert [one.routing.chosen for one in written] == [*ASKED.values()]
    mixture.save_pretrained(tmp_path / "copy")
    assert moesaic.load(tmp_path / "copy").route([*ASKED]) == mixture.route([*ASKED])
    assert mixture.route("Wo liegt der Bahnhof?").chosen == "base"


def test_what_is_kept_reads_again_as_the_same_recipe_and_router(made):
    assert read(made[0] / "recipe.yaml").router.groups == GROUPS
    stored = load_router(made[0] / "router")
    assert stored.guard is not None and stored.router.shape["groups"] == [[2, 0], [1]]
    assert stored.names == ("sums", "birds", "code")
    assert moesaic.inspect(made[0] / "router").facts["router"] == "tree"


def test_a_plan_counts_its_values(made):
    held = sum(value.numel() for value in load_router(made[0] / "router").router.state_dict().values())
    assert described([made[0] / "mixture"], None, None).router == held
    recipe = read(made[0] / "recipe.yaml", ["router.feature=hidden_mean"])
    nano = 2 * (2 * 32 + 1) + (32 * 16 + 16) * 2 + (16 * 2 + 2) * 2  # two nodes of two outcomes over 32 numbers
    assert of_recipe(recipe).router == nano


def test_forged_groups_are_refused(made, tmp_path):
    folder = tmp_path / "router"
    folder.mkdir()
    for file in (made[0] / "router").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = read_manifest(folder, "router")
    for groups in ([[2, 0], [2]], [[0, 1, 2]], [["a"], [0]], [[2, 0], [1], [3]], 7):
        forged = {**manifest, "shape": {**manifest["shape"], "groups": groups}}
        write_manifest(folder, {key: value for key, value in forged.items() if key not in OWN})
        with pytest.raises(WeightsError, match="shape"):
            load_router(folder)
