"""Journey: each stage of a run on rows with labels reads the rows of its own split, and what was judged is
what answers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from marked import LABELS, ROUTER, SIZES, TRAIN, Journey, files_of, watching, write

import moesaic
from moesaic import stages
from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.artefacts.base import save_base
from moesaic.errors import CompatibilityError
from moesaic.recipe import Recipe, parse
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer

EXPERTS = [*SIZES]
SAYS = {"sums": "{} add {} to 1", "birds": "the bird {} of day {}", "acts": "{} go {} steps"}


def row_of(domain: str, mark: str, number: int) -> dict[str, str]:
    return {"text": SAYS[domain].format(mark, number), "label": LABELS[domain][number % len(LABELS[domain])]}


def recipe_in(folder: Path) -> Recipe:
    def expert(name: str) -> dict[str, Any]:
        data = {"columns": ["text"], "labels": [*LABELS[name]], **files_of(name)}
        return {"kind": "lora", "rank": 2, "data": data}

    return parse(
        {
            "name": "marked",
            "workers": 1,
            "checkpoint_seconds": 1000,
            "base": {"path": str(folder / "base")},
            "train": TRAIN,
            "experts": {name: expert(name) for name in EXPERTS},
            "router": ROUTER,
            "evaluate": {"samples": 0},
        },
        (),
        folder / "recipe.yaml",
    )


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder = tmp_path_factory.mktemp("marked")
    marks, leaked = write(folder, row_of)
    tokenizer = Tokenizer.train([SAYS[name].format("<012>", 345) for name in EXPERTS], 300)
    (folder / "base").mkdir()
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    save_base(folder / "base", decoder, tokenizer, {})
    recipe, root = recipe_in(folder), folder / "run"
    with watching() as seen:
        for name in (*EXPERTS, "joint", "joint_wide"):
            seen.phase = name
            stages.train_expert(recipe, root, [name])
        for name in EXPERTS:
            seen.phase = f"verify {name}"
            stages.verify_expert(recipe, root, [name])
        seen.phase = "router"
        stages.train_router(recipe, root)
        stages.compose(recipe, root)
        seen.phase = "evaluate"
        evaluation = stages.evaluate(recipe, root)
    inner = tokenizers.Tokenizer.from_file(str(folder / "base/tokenizer.json"))
    return Journey(root, seen, marks, leaked, evaluation, inner)


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_learns_from_its_training_rows_and_is_chosen_and_verified_by_its_validation_rows(journey, name):
    own = journey.marks[name]
    assert journey.learned(name) == own["train"]
    assert journey.measured(name) == own["validation"]
    assert journey.read(f"verify {name}") == own["validation"]


@pytest.mark.parametrize("name", ["joint", "joint_wide"])
def test_a_joint_control_learns_from_all_training_rows_and_is_chosen_by_all_validation_rows(journey, name):
    assert journey.learned(name) == journey.together("train")
    assert journey.measured(name) == journey.together("validation")


def test_routers_learn_from_every_training_row_and_are_chosen_and_calibrated_by_every_validation_row(journey):
    train, validation = journey.together("train"), journey.together("validation")
    assert journey.read("router") == train | validation
    learned, measured = (journey.seen.vectors["router", training] for training in (True, False))
    assert len(learned) == len(train) and len(measured) == len(validation)
    assert not learned & measured
    assert journey.texts("router") == validation, "those of the keyword router"


def test_everything_is_judged_on_test_rows_alone(journey):
    assert journey.read("evaluate") == journey.together("test")
    assert journey.evaluation["rows"] == {name: SIZES[name]["test"] for name in EXPERTS}


def test_nobody_learns_from_a_row_that_another_domain_is_judged_on(journey):
    assert journey.leaked in journey.marks["birds"]["test"] and journey.leaked in journey.read("evaluate")
    for phase in (*EXPERTS, "joint", "joint_wide", "router"):
        assert journey.leaked not in journey.read(phase)


@pytest.mark.parametrize("name", EXPERTS)
def test_the_loaded_mixture_answers_with_the_labels_that_were_judged(journey, name):
    """Neither experts nor labels are in alphabetical order, so any other order of names gives wrong answers."""
    rows = [json.loads(line) for line in (journey.root.parent / f"{name}_test.jsonl").read_text().splitlines()]
    found = moesaic.load(journey.root).classify([row["text"] for row in rows], expert=name)
    assert {answer.task for answer in found} == {name}
    right = [answer.label == row["label"] for answer, row in zip(found, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(journey.evaluation["controls"][f"expert:{name}"]["score"][name])
    labels = [f"{task}/{label}" for task in EXPERTS for label in LABELS[task]]
    assert all([*answer.probabilities] == labels for answer in found)


def test_uniform_weights_are_the_average_of_the_experts(journey):
    controls = journey.evaluation["controls"]
    for domain in (*EXPERTS, "all"):
        assert controls["uniform"]["nats"][domain] == pytest.approx(controls["average"]["nats"][domain], rel=1e-5)


def test_verify_refuses_an_expert_that_is_whole_but_does_not_do_what_it_says(journey, tmp_path):
    """Its hashes are right: only measuring the expert again shows that its head is another one."""
    shutil.copytree(journey.root, tmp_path / "run", symlinks=True)
    best = tmp_path / "run/experts/birds/best"
    stored = load_expert(best)
    with torch.no_grad():
        stored.head.out.weight.mul_(-1)
    (tmp_path / "changed").mkdir()
    facts = {key: stored.manifest[key] for key in ("metrics", "head")}
    save_expert(tmp_path / "changed", stored.adapter, stored.manifest["base_fingerprint"], facts, stored.head)
    best.unlink()
    best.symlink_to(tmp_path / "changed")
    with pytest.raises(CompatibilityError, match=r"metrics\.validation_\w+: the expert does not do what its manifest"):
        stages.verify_expert(recipe_in(journey.root.parent), tmp_path / "run", ["birds"])
