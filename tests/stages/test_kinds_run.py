"""Journey: whole runs whose experts are feed-forward blocks or whole models: every figure is that of the
thing it names.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_kinds import LAYERS, WIDTH, fill, recipe_in
from small_runs import Told, opened, silent, stale

import moesaic
from moesaic import stages
from moesaic.adapters.blocks import graft
from moesaic.artefacts.base import load_base, save_base
from moesaic.artefacts.ffn import load_ffn
from moesaic.artefacts.whole_model import load_whole
from moesaic.errors import CompatibilityError, DataError, RecipeError
from moesaic.evaluate.score import score
from moesaic.evaluate.table import plain
from moesaic.files import read_manifest
from moesaic.migrate import translated
from moesaic.model.decoder import Decoder
from moesaic.model.text_counts import wording
from moesaic.recipe import Recipe, read
from moesaic.routing.routers import MLPRouter
from moesaic.stages import evaluation as stage
from moesaic.stages.decisions import decide
from moesaic.stages.routers import specs
from moesaic.stages.token_features import points_of

pytestmark = pytest.mark.slow  # whole runs

EXPERTS = ("sums", "birds")
BLOCK = 3 * 32 * WIDTH


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("kinds"))


Ran = tuple[Recipe, Path, dict]


@pytest.fixture(scope="module")
def ffn(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    compare = "router.compare=[{kind: linear, selection: soft, loss: {task: 1.0}, epochs: 2}]"
    recipe = recipe_in(place, "ffn", compare, layers="1..")
    root = tmp_path_factory.mktemp("runs") / "ffn"
    return recipe, root, moesaic.run(recipe, root)


@pytest.fixture(scope="module")
def model(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    recipe = recipe_in(place, "model", "router.compare=[{kind: linear, selection: soft, epochs: 2}]")
    root = tmp_path_factory.mktemp("runs") / "model"
    return recipe, root, moesaic.run(recipe, root)


@pytest.fixture(params=["ffn", "model"])
def ran(request: pytest.FixtureRequest) -> Ran:
    return request.getfixturevalue(request.param)


def alone(ran: Ran, folder: Path) -> Decoder:
    """One expert over a fresh base, without any of the mixture's code."""
    base = load_base(ran[1] / "mixture/base")
    if ran[0].site == "model":
        return load_whole(folder, base).decoder
    graft(base.decoder, load_ffn(folder).ffn)
    return base.decoder


def nats(ran: Ran, decoder: Decoder) -> float:
    return score(decoder.score, opened(*ran[:2]).task.test_rows, None, 4).mean()


def test_one_hot_is_the_expert_alone_and_controls_are_what_lies_in_their_folders(ran):
    _, root, evaluation = ran
    controls = evaluation["controls"]
    for name in EXPERTS:
        expected = nats(ran, alone(ran, root / f"experts/{name}/best"))
        assert controls[f"expert:{name}"]["nats"]["all"] == pytest.approx(expected, rel=1e-5)
    for name in ran[0].trained_controls:
        expected = nats(ran, alone(ran, root / f"controls/{name}/best"))
        assert controls[name]["nats"]["all"] == pytest.approx(expected, rel=1e-5)
    assert controls["base"]["nats"]["all"] == pytest.approx(
        nats(ran, load_base(root / "mixture/base").decoder), rel=1e-5
    )


def test_average_is_the_mean_of_all_parameters_by_hand(ran):
    _, root, evaluation = ran
    decoders = [alone(ran, root / f"experts/{name}/best") for name in EXPERTS]
    mean = load_base(root / "mixture/base").decoder
    with torch.no_grad():
        for name, weight in mean.named_parameters():
            weight.copy_(sum(decoder.get_parameter(name) for decoder in decoders) / 2)
    assert evaluation["controls"]["average"]["nats"]["all"] == pytest.approx(nats(ran, mean), rel=1e-5)


def test_random_and_uniform_are_of_all_experts(ran):
    controls = ran[2]["controls"]
    parts = [controls[f"expert:{name}"]["nats"]["all"] for name in EXPERTS]
    assert controls["random"]["nats"]["all"] == pytest.approx(sum(parts) / 2)
    if ran[0].site == "model":  # a mixture of distributions is no worse than the mean of the logarithms
        assert controls["uniform"]["nats"]["all"] < controls["random"]["nats"]["all"]
    assert controls["uniform"]["nats"]["all"] != pytest.approx(controls["average"]["nats"]["all"], rel=1e-6)


def test_the_router_is_scored_by_the_mixture_and_as_its_choices_say(ran):
    recipe, root, evaluation = ran
    run = opened(recipe, root)
    weights, _ = decide(run.address, silent())["router"]
    parts = [score(alone(ran, root / f"experts/{n}/best").score, run.task.test_rows, None, 4) for n in EXPERTS]
    chosen = np.stack([part.nats for part in parts])[weights.argmax(-1).numpy(), np.arange(len(weights))]
    expected = parts[0].picked(parts, weights.argmax(-1).numpy())
    assert expected.nats.tolist() == chosen.tolist()
    assert evaluation["controls"]["router"]["nats"]["all"] == pytest.approx(expected.mean(), rel=1e-5)


def test_what_each_contender_takes_is_counted(ffn, model):
    base = sum(weight.numel() for weight in load_base(ffn[1] / "mixture/base").decoder.parameters())
    # sums has blocks in one layer of two, birds in both; a router of 2 x 32 + 2
    router = 66
    counts, share = ffn[2]["parameters"], ffn[2]["router"]["utilisation"]
    assert counts == {
        "total": base + 3 * BLOCK + router,
        "base": base,
        "experts": 3 * BLOCK,
        "router": router,
        "trained": 3 * BLOCK + router,
        "active": base + router,
    }, "whoever answers, as many blocks are met"
    cost = {name: control["cost"]["parameters"] for name, control in ffn[2]["controls"].items() if "cost" in control}
    wide = read_manifest(ffn[1] / "controls/joint_wide/best")["parameters"]
    assert wide == LAYERS * 3 * 32 * 74 >= 3 * BLOCK, "three blocks over two layers, and no fewer parameters"
    assert cost.pop("joint_wide") == base - LAYERS * BLOCK + wide and cost.pop("router") == base + router
    assert set(cost.values()) == {base}

    counts, share = model[2]["parameters"], model[2]["router"]["utilisation"]
    assert counts["total"] == 3 * base + router and counts["experts"] == 2 * base
    assert counts["active"] == base + router and sum(share.values()) == pytest.approx(1)
    assert {control["cost"]["parameters"] for control in model[2]["controls"].values() if "cost" in control} == {
        base,
        base + router,
    }


def test_what_cannot_be_computed_is_said_in_a_line(ffn, model):
    assert "joint_wide" in ffn[2]["controls"] and "joint_wide" not in model[2]["controls"]
    assert "joint_wide is not computed: no whole model is as large" in model[2]["verdict"]["reasons"][-1]
    assert "not computed: no whole model" in (model[1] / "report/index.html").read_text()
    assert not any("not computed" in reason for reason in ffn[2]["verdict"]["reasons"])


def test_run_again_skips_all_and_a_change_redoes_what_depends_on_it(ran, place):
    recipe, root, evaluation = ran
    again = moesaic.run(recipe, root)
    assert {k: v for k, v in again.items() if k != "timing"} == {k: v for k, v in evaluation.items() if k != "timing"}
    site = recipe.site
    compare = "router.compare=[{kind: linear, selection: soft, epochs: 2}]"
    if site == "ffn":
        compare = "router.compare=[{kind: linear, selection: soft, loss: {task: 1.0}, epochs: 2}]"
    more = {"layers": "1.."} if site == "ffn" else {}
    trained = ("sums", "birds", *recipe.trained_controls)
    controls = set(recipe.trained_controls)
    cases = [
        (["mixture.level=sequence", "evaluate.limit=3"], {}, set()),
        (["experts.sums.train.steps=2"], {}, {"sums", *controls}),
        (["evaluate.joint.lr=1e-3"], {}, {"joint"}),
        (["router.loss.balance=0.01"], {}, {"router"}),
        (["router.prompt_tokens=9"], {}, {*trained, *specs(opened(recipe, root))}),
    ]
    cases += [([], {"layers": "1..", "anchor": True}, {"sums", *controls})] if site == "ffn" else []
    cases += [([], {"layers": "0.."}, {"sums", *controls})] if site == "ffn" else []
    for overrides, first, expected in cases:
        run = opened(recipe_in(place, site, compare, *overrides, **(more | first)), root)
        assert stale(run) == expected, overrides or first
    with pytest.raises(RecipeError, match="'sums' is missing, or was made from another recipe"):
        stages.evaluate(recipe_in(place, site, compare, "experts.sums.train.steps=2", **more), root)


def test_it_is_loaded_moved_routed_and_traced(ran, tmp_path):
    _, root, _ = ran
    shutil.copytree(root / "mixture", tmp_path / "moved")
    with moesaic.load(root, trace=tmp_path / "trace.jsonl") as here:
        prompts = ["add 3 to 4", "the owl of day 3"]
        made = here.generate(prompts, max_new_tokens=5)
        assert {one.routing.chosen for one in made} <= set(EXPERTS)
    there = moesaic.load(tmp_path / "moved")
    assert [one.ids for one in there.generate(prompts, max_new_tokens=5)] == [one.ids for one in made]
    assert [one.chosen for one in there.route(prompts)] == [one.routing.chosen for one in made]
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 2
    assert moesaic.inspect(root).parts["mixture"].parts["expert sums"].facts["adapter"] == ran[0].site


def test_at_level_token_the_mixture_decides_as_it_reads(model, place, tmp_path):
    recipe, root, evaluation = model
    shutil.copytree(root, tmp_path / "token", symlinks=True)
    compare = "router.compare=[{kind: linear, selection: soft, epochs: 2}]"
    found = moesaic.run(recipe_in(place, "model", compare, "mixture.level=token"), tmp_path / "token")
    mixture = moesaic.load(tmp_path / "token")
    assert mixture.stored.model.level == "token"
    rows = opened(recipe, root).task.test_rows
    expected = score(mixture.stored.model.score, rows, None, 1).mean()
    assert found["controls"]["router"]["nats"]["all"] == pytest.approx(expected, rel=1e-5)
    assert found["controls"]["expert:sums"]["nats"] == evaluation["controls"]["expert:sums"]["nats"]
    assert [tried["level"] for tried in found["router"]["tried"]] == ["token", "sequence", "sequence"]
    headings = next(line for line in plain(found).splitlines() if line.startswith("router ") and "feature" in line)
    assert "level" in headings.split() and " level " not in plain(evaluation)
    pages = [(at / "report/index.html").read_text() for at in (root, tmp_path / "token")]
    assert ["before every token" in page for page in pages] == [False, True]
    info = json.loads((tmp_path / "token/router/training_info.json").read_text())
    run = opened(recipe, root)
    rows = run.task.encoded(run.materials.domains["sums"].train, 48, "sums")
    assert info["examples"]["sums"] == sum(len(points_of(row)) for row in rows) > len(rows), "tokens, not prompts"
    stages.train_router(recipe_in(place, "model", compare), tmp_path / "token")
    stages.compose(recipe_in(place, "model", compare, "mixture.combine=product"), tmp_path / "token")
    assert moesaic.load(tmp_path / "token").stored.model.combine == "product"
    stages.compose(recipe_in(place, "model", compare), tmp_path / "token")
    assert moesaic.load(tmp_path / "token").stored.model.combine == "mixture"


# --- experts trained elsewhere ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(place: Path) -> Path:
    """Fine-tuned versions of the base: `blocks` differs in its feed-forward blocks, `more` in a norm as well."""
    for seed, name in enumerate(("blocks", "more"), 1):
        base = load_base(place / "base")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for path, weight in base.decoder.named_parameters():
                if ".mlp." in path or (name == "more" and path == "layers.1.input_layernorm.weight"):
                    weight.add_(torch.empty_like(weight).normal_(0, 0.05, generator=generator))
        (place / name).mkdir()
        save_base(place / name, base.decoder, base.tokenizer, {})
    return place


def elsewhere(place: Path, kind: str, one: str, two: str, *overrides: str, **more: object) -> Recipe:
    paths = [f"experts.sums.path={place / one}", f"experts.birds.path={place / two}"]
    return recipe_in(place, kind, *paths, "evaluate.samples=0", *overrides, **more)


def test_fine_tuned_models_become_experts_and_what_else_differs_is_told_by_tensor(tuned, tmp_path):
    with pytest.raises(CompatibilityError, match="outside its feed-forward blocks the model differs.*input_layernorm"):
        moesaic.run(elsewhere(tuned, "ffn", "blocks", "more"), tmp_path / "strict", Told())
    told = Told()
    recipe = elsewhere(tuned, "ffn", "base", "more", "experts.birds.ignore_rest=true")
    evaluation = moesaic.run(recipe, tmp_path / "run", told)
    assert any("birds: model.layers.1.input_layernorm.weight differs" in one for one in told.warnings)
    controls = evaluation["controls"]
    assert controls["expert:sums"]["nats"]["all"] == pytest.approx(controls["base"]["nats"]["all"], rel=1e-6)
    assert controls["expert:birds"]["nats"]["all"] != pytest.approx(controls["base"]["nats"]["all"], rel=1e-4)
    assert "joint" not in controls, "nothing is trained here that it could be a control of"
    told = Told()
    moesaic.run(recipe, tmp_path / "run", told)
    assert not any("feed-forward blocks of" in note for note in told.notes) and not told.warnings, "kept as they are"
    other = elsewhere(tuned, "ffn", "base", "blocks", "experts.birds.ignore_rest=true")
    moesaic.run(other, tmp_path / "run", told := Told())
    assert "birds: feed-forward blocks of 2 layers" in told.notes, "another model is another expert"


def test_blocks_in_a_folder_of_their_own_are_read_where_they_lie(ffn, tuned, tmp_path):
    _, root, evaluation = ffn
    shutil.copytree(root / "experts/birds/best", tmp_path / "kept")
    evaluation_of = moesaic.run(
        elsewhere(tuned, "ffn", "blocks", "blocks", f"experts.birds.path={tmp_path / 'kept'}"), tmp_path / "run"
    )
    expected = evaluation["controls"]["expert:birds"]["nats"]["birds"]
    assert evaluation_of["controls"]["expert:birds"]["nats"]["birds"] == pytest.approx(expected, rel=1e-5)
    assert not (tmp_path / "run/experts/birds").exists() and (tmp_path / "run/experts/sums/best").exists()


def test_whole_models_from_elsewhere_are_mixed_and_identical_ones_are_the_dense_model(tuned, tmp_path):
    evaluation = moesaic.run(elsewhere(tuned, "model", "blocks", "blocks"), tmp_path / "same")
    controls = evaluation["controls"]
    values = {
        name: controls[name]["nats"]["all"] for name in ("expert:sums", "expert:birds", "uniform", "average", "router")
    }
    assert values == pytest.approx(dict.fromkeys(values, values["expert:sums"]), rel=1e-5)
    base = sum(weight.numel() for weight in load_base(tuned / "base").decoder.parameters())
    assert evaluation["parameters"]["experts"] == 2 * LAYERS * BLOCK, "what they share with the base is held once"
    assert controls["expert:sums"]["cost"]["parameters"] == base
    mixed = moesaic.run(elsewhere(tuned, "model", "base", "more"), tmp_path / "mixed")["controls"]
    assert mixed["expert:sums"]["nats"]["all"] == pytest.approx(mixed["base"]["nats"]["all"], rel=1e-6)
    assert mixed["expert:birds"]["nats"]["all"] != pytest.approx(mixed["base"]["nats"]["all"], rel=1e-4)


def test_the_config_of_a_gated_pair_is_a_recipe_that_runs(tuned, tmp_path):
    """The third source system's own file: model1 is the base too, and model2 shares all but its blocks with it."""
    config = tmp_path / "pair.json"
    models = {"model1_path": str(tuned / "base"), "model2_path": str(tuned / "blocks")}
    gate = {"hidden_dims": "16,8", "num_epochs": 3, "routing_mode": "weighted_sum"}
    config.write_text(json.dumps(models | gate))
    train, test = (
        {"model1": [str(tuned / f"sums_{split}.jsonl")], "model2": [str(tuned / f"birds_{split}.jsonl")]}
        for split in ("train", "test")
    )
    made = translated(config, train, test).recipe
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(made | {"workers": 1, "train": {"length": 48}}))
    recipe = read(tmp_path / "pair.yaml")
    assert recipe.site == "ffn" and recipe.router.selection == "soft"
    evaluation = moesaic.run(recipe, tmp_path / "run")
    controls = evaluation["controls"]
    assert controls["expert:model1"]["nats"]["all"] == pytest.approx(controls["base"]["nats"]["all"], rel=1e-6)
    with moesaic.load(tmp_path / "run") as mixture:
        made = mixture.generate("add 3 to 4", max_new_tokens=3)
    assert set(made.routing.weights) == {"model1", "model2"} and sum(made.routing.weights.values()) == pytest.approx(1)
    assert 0 < made.routing.weights["model1"] < 1, "both have a say"
    router = MLPRouter(32, 2, [16, 8])
    assert evaluation["parameters"]["router"] == sum(weight.numel() for weight in router.parameters())


def test_routers_are_judged_once_more_on_prompts_of_one_length(place, tmp_path):
    recipe = recipe_in(place, "ffn", "evaluate.matched=4", "router.compare=[{kind: centroid}]", "evaluate.samples=0")
    evaluation = moesaic.run(recipe, tmp_path / "run")
    run = opened(recipe, tmp_path / "run")
    rows = run.task.test_rows
    sizes = {domain: sum(row.prompt >= 4 for row in some) for domain, some in rows.items()}
    assert evaluation["router"]["matched"]["rows"] == sizes and evaluation["router"]["matched"]["tokens"] == 4
    assert evaluation["router"]["tried"][0]["matched"] == evaluation["router"]["matched"]
    stored = stage.stored_router(run, "centroid-hidden_mean")
    base, right = load_base(place / "base"), list[bool]()
    for name, some in rows.items():
        for row in some:
            start = (row.prompt - 4) // 2
            ids = torch.tensor([row.ids[start : start + 4]])
            with torch.no_grad():
                routing = stored.weigh(
                    base.decoder(ids).hidden.mean(1), wording([base.tokenizer.decode(ids[0].tolist())])
                )
            right.append(int(routing.best) == stored.names.index(name))
    assert evaluation["router"]["tried"][1]["matched"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert "accuracy on" in (tmp_path / "run/report/index.html").read_text()
    with pytest.raises(DataError, match="evaluate.matched: no test prompt of 'sums' is so long; expected <= "):
        longer = recipe_in(place, "ffn", "evaluate.matched=99", "router.compare=[{kind: centroid}]")
        stages.evaluate(longer, tmp_path / "run")
