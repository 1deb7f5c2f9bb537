"""Journey: a run whose blocks are chosen by every token, beside other gates and a router of prompts."""

import json
from pathlib import Path

import pytest
import torch
from small_kinds import fill, recipe_in
from small_runs import opened, stale

import moesaic
from moesaic.artefacts.base import load_base
from moesaic.artefacts.ffn import load_ffn
from moesaic.artefacts.router import load_router
from moesaic.compose.export import export
from moesaic.errors import WeightsError
from moesaic.evaluate.score import score
from moesaic.files import read_manifest
from moesaic.ops import glu
from moesaic.recipe import Recipe
from moesaic.tensors.tensors import read_tensors

pytestmark = pytest.mark.slow  # whole runs

EXPERTS = ("sums", "birds")
HIDDEN = "{kind: gates, gates: {start: hidden, steps: 0}}"
ROUTER = f"router={{kind: gates, gates: {{steps: 4}}, compare: [{HIDDEN}, {{kind: linear, epochs: 2}}]}}"

Ran = tuple[Recipe, Path, dict]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("gates"))


@pytest.fixture(scope="module")
def ran(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    recipe = recipe_in(place, "ffn", ROUTER, "mixture.level=token", layers="1..")
    root = tmp_path_factory.mktemp("runs") / "gates"
    return recipe, root, moesaic.run(recipe, root)


def naive(ran: Ran, ids: torch.Tensor) -> torch.Tensor:
    """Logits by a loop over tokens, from the files of the mixture alone."""
    decoder = load_base(ran[1] / "mixture/base").decoder
    router = load_router(ran[1] / "mixture/router")
    experts = [load_ffn(ran[1] / f"mixture/experts/{name}").ffn for name in router.names]

    class Naive(torch.nn.Module):
        def __init__(self, base, path):
            super().__init__()
            self.base, self.path = base, path

        def forward(self, x, gates):
            y = torch.zeros_like(x)
            for at in torch.cartesian_prod(torch.arange(len(x)), torch.arange(x.shape[1])).tolist():
                token = x[*at][None, None]
                values, chosen = (router.router.by_path[self.path] @ token[0, 0]).softmax(-1).topk(2)
                for value, expert in zip(values / values.sum(), chosen.tolist(), strict=True):
                    block = experts[expert].blocks.get(self.path)
                    one = glu.block(token, *block, self.base.act, torch.ones(1)) if block else self.base(token, None)[0]
                    y[*at] += value * one[0, 0]
            return y, None

    for index, layer in enumerate(decoder.layers):
        layer.mlp = Naive(layer.mlp, f"layers.{index}.mlp")
    with torch.no_grad():
        return decoder(ids).logits


def test_the_mixture_is_the_naive_loop_over_tokens_of_the_files(ran):
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    with moesaic.load(ran[1]) as model, torch.no_grad():
        assert (model.engine.mixture.score(ids) - naive(ran, ids)).abs().max() < 1e-5


def test_every_figure_is_that_of_the_thing_it_names(ran):
    recipe, root, evaluation = ran
    task, controls = opened(recipe, root).task, evaluation["controls"]
    for name in EXPERTS:
        assert controls[f"expert:{name}"]["nats"]["all"] == pytest.approx(
            score(task.mixture.model.score, task.test_rows, one_hot(ran, name), 4).mean()
        )
    routed = score(task.mixture.model.score, task.test_rows, None, 4).mean()
    assert controls["router"]["nats"]["all"] == pytest.approx(routed, rel=1e-6)
    tried = {one["kind"] + one["feature"]: one for one in evaluation["router"]["tried"]}
    assert tried["gatesridge"]["nats"] == pytest.approx(routed, rel=1e-6) and tried["gatesridge"]["level"] == "token"
    assert tried["gateshidden"]["nats"] != pytest.approx(routed, rel=1e-6)
    assert {"linearhidden_mean", "keywordtext"} < tried.keys()
    counts = evaluation["parameters"]
    with moesaic.load(root) as model:
        gates = sum(rows.numel() for rows in model.engine.mixture.router.parameters())
    assert counts["router"] == gates == 2 * 2 * 32
    assert counts["total"] == counts["base"] + counts["experts"] + gates
    assert [layer["layer"] for layer in evaluation["sparse_layers"]] == [0, 1]


def one_hot(ran: Ran, name: str) -> torch.Tensor:
    rows = sum(map(len, opened(*ran[:2]).task.test_rows.values()))
    return torch.tensor([[float(one == name) for one in EXPERTS]]).expand(rows, -1).clone()


def test_the_router_says_what_it_was_trained_on_and_is_no_worse_for_it(ran):
    _, root, _ = ran
    info = json.loads((root / "router/training_info.json").read_text())
    assert info["training_tokens"] > 0 and info["validation"]["nats"] <= info["nats_before"] + 1e-6
    untrained = next(at for at in (root / "controls/routers").iterdir() if "gates" in at.name)
    assert json.loads((untrained / "training_info.json").read_text())["training_tokens"] == 0
    rows = [read_tensors(at / "router.safetensors") for at in (root / "router", untrained)]
    assert not rows[0]["rows.0"].equal(rows[1]["rows.0"])


def test_it_answers_and_says_the_share_of_each_expert(ran):
    with moesaic.load(ran[1]) as model:
        report = model.route("add 3 to 4")
        assert report.chosen in EXPERTS and sum(report.weights.values()) == pytest.approx(1, abs=1e-5)
        together = model.generate(["add 3 to 4", "the owl of day 3"], max_new_tokens=6, temperature=0)
        alone = [model.generate(one, max_new_tokens=6, temperature=0) for one in ("add 3 to 4", "the owl of day 3")]
        assert [one.text for one in together] == [one.text for one in alone]
        named = model.generate("add 3 to 4", max_new_tokens=6, temperature=0, expert="birds")
        assert named.routing.chosen == "birds"


@pytest.mark.parametrize("format", ["mixtral", "mixtral-packed"])
def test_it_is_exported_as_a_sparse_model_of_the_same_logits(format, ran, tmp_path):
    made = export(ran[1], tmp_path / "made", format)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        wanted = moesaic.load(ran[1]).engine.mixture.score(ids)
        assert (moesaic.load_model(str(made))(ids).logits - wanted).abs().max() < 1e-5


def test_another_mixture_is_no_sparse_model(place, tmp_path):
    recipe = recipe_in(place, "ffn", "evaluate.controls=[base]")
    moesaic.run(recipe, tmp_path / "run")
    with pytest.raises(WeightsError, match="several experts, not one; name one of them"):
        export(tmp_path / "run", tmp_path / "made", "mixtral")


def test_what_depends_on_a_change_is_stale_and_nothing_else(ran):
    recipe, root, _ = ran
    assert stale(opened(recipe, root)) == set()
    gates = recipe.router.gates.model_copy(update={"lr": 0.5})
    changed = recipe.model_copy(update={"router": recipe.router.model_copy(update={"gates": gates})})
    assert stale(opened(changed, root)) == {"router"}
    assert read_manifest(root / "mixture")["level"] == "token"
