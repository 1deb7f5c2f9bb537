"""Journey: each stage of a run on texts reads the rows of its own split, all of them and no others."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from marked import ROUTER, SIZES, TRAIN, Journey, files_of, put, watching, write

from moesaic import stages
from moesaic.data.forms import OTHERS
from moesaic.data.neutral import neutral
from moesaic.recipe import Recipe, parse
from moesaic.tokenizer import Tokenizer

EXPERTS = [*SIZES]
UNSEEN = {f"<{n}>" for n in range(900, 904)}
ASKS = {"sums": "{} add {} to 1", "birds": "the bird {} of day {}", "acts": "{} go {} steps"}
SAYS = {"sums": "it is {}", "birds": "sings {} songs", "acts": "done, {} of them"}


def row_of(domain: str, mark: str, number: int) -> dict[str, str]:
    return {"prompt": ASKS[domain].format(mark, number), "response": SAYS[domain].format(number + 1)}


def recipe_in(folder: Path) -> Recipe:
    experts = {name: {"kind": "lora", "rank": 2, "data": files_of(name)} for name in EXPERTS}
    taught = {"kind": "linear", "feature": "embedding_mean", "epochs": 2, "loss": {"task": 1}, "renormalise": False}
    pretrain = {"steps": 16, "batch": 4, "length": 48, "lr": 1e-2, "evaluate_every": 8}
    return parse(
        {
            "name": "marked",
            "workers": 1,
            "checkpoint_seconds": 1000,
            "base": {"size": "nano", "vocab_size": 300, "pretrain": pretrain},
            "train": {**TRAIN, "length": 64},  # at 48, the ends of two neutral prompts of different splits are alike
            "experts": experts,
            "router": {**ROUTER, "compare": [*ROUTER["compare"], taught]},
            "evaluate": {"unseen": "unseen.jsonl", "samples": 0},
        },
        (),
        folder / "recipe.yaml",
    )


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder = tmp_path_factory.mktemp("marked")
    marks, leaked = write(folder, row_of)
    put(folder / "unseen.jsonl", [{"text": f"line {mark} of a log, status ok"} for mark in sorted(UNSEEN)])
    recipe, root, train = recipe_in(folder), folder / "run", Tokenizer.train
    with watching() as seen, pytest.MonkeyPatch.context() as patch:

        def trained(texts: Any, vocab_size: int) -> Tokenizer:
            seen.texts["tokenizer"] = list(texts)
            return train(seen.texts["tokenizer"], vocab_size)

        patch.setattr(Tokenizer, "train", staticmethod(trained))
        seen.phase = "pretrain"
        stages.pretrain(recipe, root)
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
    inner = tokenizers.Tokenizer.from_file(str(root / "base/tokenizer.json"))
    return Journey(root, seen, marks, leaked, evaluation, inner)


def test_the_base_and_its_tokenizer_learn_from_training_rows_and_stop_by_validation_rows(journey):
    train = journey.together("train")
    assert journey.texts("tokenizer") == train
    assert journey.learned("pretrain") <= train and len(journey.learned("pretrain")) > len(train) / 2
    assert journey.measured("pretrain") == journey.together("validation")


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


def test_routers_read_training_and_validation_rows_alone(journey):
    train, validation = journey.together("train"), journey.together("validation")
    assert journey.read("router") == train | validation


def test_routers_learn_from_every_training_row_and_are_chosen_and_calibrated_by_every_validation_row(journey):
    """A router and its guard in training mode learn; in the other mode their epoch and temperature are chosen.

    Both read every row, and the more of 256 and twice as many neutral prompts, as they are and in other forms, which
    may leave them as they are.
    """
    train, validation = journey.together("train"), journey.together("validation")
    learned, measured = (journey.seen.vectors["router", training] for training in (True, False))
    for found, rows, split in ((learned, train, "train"), (measured, validation, "validation")):
        most = len(rows) + min(max(256, 2 * len(rows)), sum(map(len, neutral(split).values())))
        assert most <= len(found) <= 2 * (1 + len(OTHERS)) * most, "vectors and characters, in all forms"
    assert not learned & measured
    assert journey.texts("router") == validation, "those of the keyword router"


def test_everything_is_judged_on_test_rows_and_on_unseen_text_alone(journey):
    test = journey.together("test")
    assert journey.read("evaluate") == test | UNSEEN
    assert journey.texts("evaluate") == test | UNSEEN
    assert journey.evaluation["rows"] == {name: SIZES[name]["test"] for name in EXPERTS} | {"unseen": len(UNSEEN)}


def test_nobody_learns_from_a_row_that_another_domain_is_judged_on(journey):
    assert journey.leaked in journey.marks["birds"]["test"] and journey.leaked in journey.read("evaluate")
    for phase in ("pretrain", *EXPERTS, "joint", "joint_wide", "router"):
        assert journey.leaked not in journey.read(phase)
