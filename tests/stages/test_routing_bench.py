"""Journey: routers of every level are compared over the experts of one run, which stay as they are."""

from pathlib import Path

import pytest
from small_kinds import fill, recipe_in
from small_runs import opened

from moesaic import stages
from moesaic.evaluate.score import score
from moesaic.evaluate.statistics import ALL
from moesaic.files import read_json
from moesaic.recipe import Recipe
from moesaic.stages.gates import mixture_with
from moesaic.stages.routing_bench import FILE, ties_of, widened

pytestmark = pytest.mark.slow  # a whole run

TRAINED = "router={kind: gates, gates: {steps: 2, balance: none}}"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict]:
    place = fill(tmp_path_factory.mktemp("bench"))
    recipe = recipe_in(place, "ffn", TRAINED, "mixture.level=token", "evaluate.unseen=[birds_train.jsonl]")
    root = tmp_path_factory.mktemp("runs") / "bench"
    return recipe, root, stages.bench_routing(recipe, root)


def test_the_arms_are_of_every_level_and_their_figures_are_kept(ran):
    _, root, figures = ran
    assert read_json(root / FILE) == figures
    levels = {arm["level"] for arm in figures["arms"].values()}
    assert levels == {"dense", "sequence", "token", "oracle"}
    assert {"base", "average", "TIES", "joint", "expert:sums", "per token"} < figures["arms"].keys()
    assert "gates-ridge-k2-none" in figures["arms"], "the recipe's own router, by what it is"
    assert figures["domains"] == [ALL, "birds", "sums", "unseen"]


def test_nothing_is_better_than_the_oracles(ran):
    arms = {name: arm["nats"][ALL] for name, arm in ran[2]["arms"].items()}
    parts = [arms[name] for name in ("base", "expert:sums", "expert:birds")]
    assert arms["per token"] <= arms["per sequence"] <= min(parts)


def test_each_figure_is_that_of_the_model_it_names(ran):
    recipe, root, figures = ran
    run = opened(widened(recipe), root)
    label = "gates-means-k2-untrained"
    found = score(mixture_with(run, label).score, run.task.test_rows, None, 4).mean()
    assert figures["arms"][label]["nats"][ALL] == pytest.approx(found, rel=1e-6)
    merged = score(ties_of(run).score, run.task.test_rows, None, 4).mean()
    assert figures["arms"]["TIES"]["nats"][ALL] == pytest.approx(merged, rel=1e-6)


def test_the_recipe_of_the_run_is_not_changed(ran):
    assert "cheap_embed" not in (ran[1] / "recipe.yaml").read_text()
