"""Journey: experts of tensor trains in a whole run, beside one of LoRA: trained, verified, joined, judged,
and found on disk.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import opened

import moesaic
from moesaic import stages
from moesaic.adapters import TensorTrain
from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.artefacts.base import load_base
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.files import read_manifest
from moesaic.recipe import Recipe, parse
from moesaic.stages.experts import ExpertPart, plan_of

pytestmark = pytest.mark.slow  # whole runs

TRAINED = {"kind": "tt_lora", "rank": 4, "targets": ["q_proj", "v_proj"], "train": {"lr": 1e-2}}


def sums(start: int, count: int) -> list[str]:
    return [
        json.dumps({"prompt": f"What is {n} + {n % 7}?", "response": f"It is {n + n % 7}."})
        for n in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, rows in (
        ("adds", sums(0, 40)),
        ("adds_test", sums(100, 8)),
        ("takes", [row.replace("+", "less").replace("It is", "That leaves") for row in sums(200, 40)]),
        ("takes_test", [row.replace("+", "less").replace("It is", "That leaves") for row in sums(300, 8)]),
    ):
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def recipe_in(texts: Path, adds: dict[str, Any], takes: dict[str, Any], **changes: Any) -> Recipe:
    own = {
        name: {**expert, "data": {"train": f"{name}.jsonl", "test": f"{name}_test.jsonl"}}
        for name, expert in (("adds", adds), ("takes", takes))
    }
    pretrain = {"steps": 10, "batch": 4, "length": 64, "lr": 1e-2, "evaluate_every": 0}
    whole = {
        "name": "small",
        "workers": 1,
        "base": {"size": "nano", "vocab_size": 300, "pretrain": pretrain},
        "train": {"steps": 6, "batch": 4, "length": 64, "lr": 1e-2, "evaluate_every": 0},
        "experts": own,
        "router": {"kind": "centroid", "feature": "embedding_mean"},
        "evaluate": {"samples": 0},
    }
    return parse({**whole, **changes}, (), texts / "recipe.yaml")


@pytest.fixture(scope="module")
def ran(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict[str, Any]]:
    recipe = recipe_in(texts, TRAINED, {"kind": "lora", "rank": 2})
    root = tmp_path_factory.mktemp("runs") / "small"
    return recipe, root, moesaic.run(recipe, root)


def test_a_mixture_of_both_kinds_is_judged_beside_all_its_controls(ran):
    _, root, evaluation = ran
    assert {"expert:adds", "expert:takes", "joint", "joint_wide", "router"} <= set(evaluation["controls"])
    stored = {name: load_expert(root / "experts" / name / "best") for name in ("adds", "takes")}
    sizes = {name: one.adapter.num_parameters for name, one in stored.items()}
    assert isinstance(stored["adds"].adapter, TensorTrain) and stored["adds"].lora.rank == 4
    assert evaluation["parameters"]["experts"] == sum(sizes.values())
    assert sizes["adds"] < stored["adds"].lora.num_parameters


def test_at_site_linear_uniform_is_the_merged_average_with_tensor_trains_too(ran):
    nats = [ran[2]["controls"][name]["nats"]["all"] for name in ("uniform", "average")]
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)


def test_an_expert_of_tensor_trains_learned_and_is_what_its_manifest_says(ran, texts):
    recipe, root, _ = ran
    (verified,) = stages.verify_expert(recipe, root, ["adds"])
    assert verified["gain"] > 0
    assert verified["validation_nats"] == pytest.approx(verified["manifest"], rel=1e-5)
    manifest = read_manifest(root / "experts" / "adds" / "best")
    assert (manifest["adapter"], manifest["rank"], manifest["alpha"]) == ("tt_lora", 4, 8.0)
    assert manifest["targets"] == ["q_proj", "v_proj"] and manifest["layers"] == [0, 1]
    assert sorted(manifest["files"]) == ["tensor_train.json", "tensor_train.safetensors"]


def test_an_expert_whose_cores_changed_is_found_out(ran, texts, tmp_path):
    recipe, whole, _ = ran
    root = shutil.copytree(whole, tmp_path / "small", symlinks=True)
    folder = root / "experts" / "adds" / "best"
    stored = load_expert(folder)
    for train in stored.adapter.cores.values():
        train.outputs[-1].zero_()
    kept = {key: stored.manifest[key] for key in ("metrics", "stage_key")}
    again = tmp_path / "again"
    again.mkdir()
    save_expert(again, stored.adapter, stored.base_fingerprint, kept)
    real = folder.resolve()
    for file in again.iterdir():
        (real / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CompatibilityError, match=r"does not do what its manifest says.*and layers\.0\S+ changes noth"):
        stages.verify_expert(recipe, root, ["adds"])


def test_a_run_again_skips_what_is_finished_and_other_factors_make_the_expert_anew(ran, texts):
    recipe, root, evaluation = ran
    assert moesaic.run(recipe, root)["stage_key"] == evaluation["stage_key"]
    keys = read_manifest(root / "experts" / "adds" / "best")["stage_key"]
    own = {"q_proj": [[8, 4], [4, 8]], "v_proj": [[8, 4], [2, 8]]}
    other = recipe_in(texts, {**TRAINED, "factors": own}, {"kind": "lora", "rank": 2})
    assert ExpertPart(opened(other, root), "adds").key != keys == ExpertPart(opened(recipe, root), "adds").key


@pytest.mark.parametrize(
    ("takes", "kind"),
    [({"kind": "lora", "rank": 2}, "lora"), ({"kind": "tt_lora", "rank": 6, "targets": ["q_proj"]}, "tt_lora")],
    ids=["of both kinds", "all of tensor trains"],
)
def test_a_control_is_of_the_experts_kind_and_joint_wide_of_no_fewer_parameters_than_all(ran, texts, takes, kind):
    _, root, _ = ran
    run = opened(recipe_in(texts, TRAINED, takes), root)
    decoder, every = run.models.base.decoder, range(run.models.base.decoder.config.num_layers)
    own = [plan_of(run, name).design for name in ("adds", "takes")]
    plans = [plan_of(run, name) for name in ("joint", "joint_wide")]
    assert [plan.kind.word for plan in plans] == [kind, kind]
    joint, joint_wide = (plan.design for plan in plans)
    assert joint.rank == max(one.rank for one in own) and joint.scale == max(one.scale for one in own)
    together = sum(one.num_parameters(decoder, every) for one in own)
    smaller = joint_wide.of_size(1, decoder, every)
    assert joint_wide.num_parameters(decoder, every) >= together
    below = replace(joint_wide, rank=joint_wide.rank - 1)
    assert smaller.rank == 1 and below.num_parameters(decoder, every) < together


def test_the_design_counts_what_the_adapter_has(ran, texts):
    _, root, _ = ran
    base = load_base(root / "base").decoder
    for name in ("adds", "takes"):
        design = plan_of(opened(recipe_in(texts, TRAINED, {"kind": "lora", "rank": 2}), root), name).design
        made = design.fresh(base, range(2), torch.Generator().manual_seed(0))
        assert design.num_parameters(base, range(2)) == made.num_parameters


def test_what_does_not_suit_the_base_is_refused_by_name_when_it_is_trained(ran, texts):
    _, root, _ = ran
    for own, says in (
        ({"rank": 999}, r"layers\.0\.\S+_proj: an impossible rank; expected 1 to \d+, .*; got 999"),
        ({"targets": ["q_proj"], "factors": {"q_proj": [[3], [64]]}}, r"do not multiply to the inputs.*got 3 = 3"),
        ({"targets": ["q_proj"], "factors": "published"}, "no factors are published for a matrix of 32 x 32"),
        ({"targets": ["query"]}, "no linear of the base matches"),
    ):
        run = opened(recipe_in(texts, {**TRAINED, **own}, {"kind": "lora"}), root)
        with pytest.raises((CompatibilityError, RecipeError), match=says):
            plan_of(run, "adds").begin(run.task.fresh().body, run.recipe.seed)
