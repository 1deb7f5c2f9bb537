"""Property: a new kind of expert is one file and one row: a kind that the package does not know runs through
all of it.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ia3
import pytest
import torch
from small_kinds import fill, recipe_in

import moesaic
from moesaic import stages
from moesaic.artefacts.base import load_base
from moesaic.compose.mixture import load_mixture
from moesaic.errors import RecipeError
from moesaic.evaluate.score import score
from moesaic.kinds import KINDS, held_in, sites
from moesaic.model.decoder import Decoder
from moesaic.recipe import Recipe
from moesaic.runs.directory import RunDir
from moesaic.tasks import Address, open_run
from moesaic.tensors.tensors import read_tensors

EXPERTS = ("sums", "birds")
PROMPTS = ["add 3 to 3", "the owl of day 9"]


@dataclass(frozen=True)
class Ran:
    """A finished run of the new kind, and the folder of its texts."""

    place: Path
    recipe: Recipe
    root: Path
    evaluation: dict[str, Any]


@pytest.fixture(scope="module")
def one_more() -> Iterator[None]:
    """The table with one more row, which is taken out again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "ia3", ia3.IA3Kind())
        Recipe.model_rebuild(force=True)
        yield
    Recipe.model_rebuild(force=True)


@pytest.fixture(scope="module")
def ran(one_more: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    place = fill(tmp_path_factory.mktemp("new"))
    recipe, root = recipe_in(place, "ia3", "train.lr=0.1"), tmp_path_factory.mktemp("runs") / "ia3"
    return Ran(place, recipe, root, moesaic.run(recipe, root))


def scaled(ran: Ran, *vectors: dict[str, torch.Tensor]) -> Decoder:
    """The base with every matrix multiplied by the mean of these vectors: none of the kind's code."""
    decoder = load_base(ran.place / "base").decoder
    with torch.no_grad():
        for path in vectors[0]:
            mean = sum(some[path] for some in vectors) / len(vectors)
            decoder.get_submodule(path).weight.copy_(torch.diag(mean) @ decoder.get_submodule(path).weight)
    return decoder


def vectors_of(ran: Ran, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(ran.root / f"experts/{name}/best" / ia3.TENSORS)


def nats(ran: Ran, decoder: Decoder) -> float:
    rows = open_run(Address(RunDir(ran.recipe, ran.root))).task.test_rows
    return score(decoder.score, rows, None, 4).mean()


def figure(ran: Ran, control: str) -> float:
    return ran.evaluation["controls"][control]["nats"]["all"]


def test_it_is_one_file_of_at_most_120_lines() -> None:
    lines = Path(ia3.__file__).read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 120, "blank lines left out"


def test_each_expert_is_the_base_with_its_matrices_scaled(ran):
    assert ran.recipe.site == "scaling"
    for name in EXPERTS:
        vectors = vectors_of(ran, name)
        assert {path.rpartition(".")[2] for path in vectors} == {"k_proj", "v_proj", "up_proj"}
        assert not any(vector.eq(1).all() for vector in vectors.values())
        assert figure(ran, f"expert:{name}") == pytest.approx(nats(ran, scaled(ran, vectors)), rel=1e-5)
    assert figure(ran, "expert:sums") != figure(ran, "expert:birds")


def test_uniform_weights_are_the_mean_of_the_vectors(ran):
    expected = nats(ran, scaled(ran, *(vectors_of(ran, name) for name in EXPERTS)))
    assert figure(ran, "average") == pytest.approx(expected, rel=1e-5)
    assert figure(ran, "uniform") == pytest.approx(expected, rel=1e-5)


def test_controls_and_costs_are_told(ran):
    assert {"base", "router", "oracle_best", "random", "uniform", "average", "joint"} <= {*ran.evaluation["controls"]}
    assert "joint_wide" not in ran.evaluation["controls"]
    base = sum(weight.numel() for weight in load_base(ran.place / "base").decoder.parameters())
    own = sum(vector.numel() for vector in vectors_of(ran, "sums").values())
    counts = ran.evaluation["parameters"]
    assert (counts["base"], counts["experts"]) == (base, 2 * own)
    assert counts["active"] == base + own + counts["router"]
    assert json.loads((ran.root / "evaluation.json").read_text())["parameters"] == counts


def test_a_published_expert_is_read_back_and_measured_again(ran):
    for found in stages.verify_expert(ran.recipe, ran.root, [*EXPERTS]):
        assert found["validation_nats"] == pytest.approx(found["manifest"], rel=1e-4)


def test_the_mixture_answers_the_same_from_anywhere(ran, tmp_path):
    mixture = moesaic.load(ran.root / "mixture")
    before = mixture.generate(PROMPTS, max_new_tokens=6)
    mixture.save_pretrained(tmp_path / "saved")
    moved = shutil.move(tmp_path / "saved", tmp_path / "moved")
    assert moesaic.load(moved).generate(PROMPTS, max_new_tokens=6) == before
    assert [*load_mixture(moved).experts] == [*EXPERTS]
    assert held_in(moved / "experts" / "sums").word == "ia3"
    assert moesaic.inspect(moved).facts["site"] == "scaling"


def test_what_does_not_go_with_it_is_refused(ran):
    with pytest.raises(RecipeError, match="cannot be mixed with"):
        recipe_in(ran.place, "ia3", "experts.birds.kind=lora")
    with pytest.raises(RecipeError, match="expected 'linear', 'ffn', 'model' or 'scaling'"):
        recipe_in(ran.place, "ia3", "mixture.site=head")


def test_without_its_row_nobody_knows_it(ran, monkeypatch):
    monkeypatch.delitem(KINDS, "ia3")
    assert sites() == ["linear", "ffn", "model"]
    assert held_in(ran.root / "experts/sums/best") is None
