"""Journey: two tasks of GLUE over real weights: real sentences, a real encoder, a mixture that knows whose they are."""

from pathlib import Path

import pytest

import moesaic
from moesaic import stages
from moesaic.files import read_manifest
from moesaic.recipe import parse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(minilm, shared, tmp_path_factory):
    def expert(task: str, **train) -> dict:
        data = {"task": task, "train": f"{task}/train.jsonl", "test": f"{task}/test.jsonl"}
        own = {"kind": "tt_lora", "rank": 2, "alpha": 4, "factors": 3}
        own["targets"] = ["query", "key", "value", "dense"]
        return {**own, "data": data, "train": train}

    mapping = {
        "name": "real",
        "workers": 1,
        "data_root": str(shared / "data"),
        "base": {"path": str(minilm), "pool": "mean"},
        "train": {"batch": 16, "length": 48, "lr": 3e-3, "evaluate_every": 0},
        "experts": {"sst2": expert("sst2", steps=60), "cola": expert("cola", steps=20)},
        "router": {"kind": "linear", "feature": "characters", "examples": 1000, "epochs": 15},
        "evaluate": {"limit": 120, "controls": ["base", "average", "keyword", "oracle"]},
    }
    folder = tmp_path_factory.mktemp("tasks")
    recipe = parse(mapping, (), folder / "recipe.yaml")
    return recipe, folder / "run", moesaic.run(recipe, folder / "run")


def test_the_mixture_is_as_good_as_the_expert_that_has_learned_its_task(ran):
    *_, found = ran
    controls = found["controls"]
    score = controls["router"]["score"]
    assert found["router"]["accuracy"] >= 0.97
    assert score["sst2"] > 0.7 > controls["base"]["score"]["sst2"]
    assert score["sst2"] >= controls["expert:sst2"]["score"]["sst2"] - 0.02
    assert score["all"] > max(controls[name]["score"]["all"] for name in ("average", "base", "keyword"))


def test_both_experts_verify_and_stay_under_a_twentieth_of_lora(ran):
    recipe, root, _ = ran
    for expert in stages.verify_expert(recipe, root, []):
        manifest = read_manifest(Path(expert["folder"]))
        assert expert["metrics"] == {key: manifest["metrics"][key] for key in expert["metrics"]}
        assert manifest["parameters"] == 28_512 < 0.05 * 663_552, "LoRA of rank 16 on the same matrices"


def test_sentences_that_nobody_has_seen_are_answered_by_their_expert(ran):
    mixture = moesaic.load(ran[1])
    good, bad, said = mixture.classify(
        ["a gorgeous , warm and witty film .", "a dull , lifeless mess .", "The boy that she kissed him left."]
    )
    assert (good.task, good.label) == ("sst2", "positive")
    assert (bad.task, bad.label) == ("sst2", "negative")
    assert said.task == "cola"
