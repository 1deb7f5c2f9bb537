"""Journey: one small real run, from texts to evaluation, and what happens when it is run again, changed,
moved or damaged.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import Told, bench_of, opened, silent, stale, two_experts

import moesaic
from moesaic import stages
from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.artefacts.base import load_base
from moesaic.artefacts.router import load_router
from moesaic.data.batches import Tokens
from moesaic.data.rows import Example
from moesaic.errors import CompatibilityError, DataError, NonFiniteError, RecipeError, WeightsError
from moesaic.files import read_manifest, read_sealed, write_manifest, write_sealed
from moesaic.recipe import Recipe, parse
from moesaic.runs.directory import RunDir
from moesaic.stages import experts
from moesaic.stages.base import Longest
from moesaic.stages.decisions import decide
from moesaic.stages.evaluation import EvaluationPart, looked_up, score_contender, score_router
from moesaic.stages.experts import plan_of, verify_expert
from moesaic.stages.routers import label_of, specs
from moesaic.tasks.task import even

RECIPE = two_experts(
    {"steps": 20, "batch": 4, "length": 64},
    {"steps": 12, "batch": 4, "length": 64},
    {
        "epochs": 5,
        "compare": [{"kind": "centroid"}, {"kind": "mlp", "selection": "soft", "epochs": 2, "hidden": [8]}],
    },
    evaluate={"unseen": "other.jsonl", "samples": 1},
)
RECIPE["experts"]["says"] |= {"rank": 4, "targets": ["q_proj", "down_proj"]}


class Notes:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, task: str, steps: int) -> None: ...
    def row(self, task: str, row: dict[str, Any]) -> None: ...

    def end(self, task: str, text: str) -> None:
        self.ended.append(task)

    @property
    def skipped(self) -> list[str]:
        return [note.partition(":")[0] for note in self.notes if note.endswith("skipped")]


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    return parse(RECIPE, overrides, folder / "recipe.yaml")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def sums(start: int, count: int) -> list[dict[str, Any]]:
        return [
            {"prompt": f"What is {n} + {n % 7}?", "response": f"It is {n + n % 7}."}
            for n in range(start, start + count)
        ]

    words = ["red", "blue", "green", "old", "new", "big", "small"]
    birds = ["owl", "crow", "wren", "swan", "hawk"]

    def talks(start: int, count: int) -> list[dict[str, Any]]:
        every = [(a, b, c) for a in words for b in words for c in birds]
        return [
            {"text": f"Once a {a} and {b} {c} sat in a tree. The {c} sang all day, and the {b} wind carried it away."}
            for a, b, c in every[start : start + count]
        ]

    write("adds.jsonl", sums(0, 60))
    write("adds_test.jsonl", sums(100, 12))
    write("says.jsonl", talks(0, 60))
    write("says_test.jsonl", talks(100, 12))
    write("other.jsonl", [{"text": f"Line {n} of a log: status ok, took {n * 3} ms, host alpha."} for n in range(8)])
    return folder


@pytest.fixture(scope="module")
def first(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("runs") / "small"
    recipe = recipe_in(texts)
    return recipe, root, moesaic.run(recipe, root)


def test_the_evaluation_holds_all_that_was_promised(first):
    _, root, evaluation = first
    assert evaluation == read_sealed(root / "evaluation.json")
    names = "base expert:adds expert:says joint joint_wide average uniform random keyword router oracle oracle_best"
    assert set(evaluation["controls"]) == set(names.split())
    for control in evaluation["controls"].values():
        assert set(control["nats"]) == set(control["perplexity"]) == {"adds", "says", "all", "unseen"}
        low, high = control["interval"]
        assert low <= control["nats"]["all"] <= high
        assert control["perplexity"]["all"] == pytest.approx(np.exp(control["nats"]["all"]))
    assert {"accuracy", "macro_f1", "confusion", "utilisation", "tried"} <= set(evaluation["router"])
    assert [tried["kind"] for tried in evaluation["router"]["tried"]] == ["linear", "centroid", "mlp", "keyword"]
    assert {"domains", "best_single", "regret", "gap_closed", "parameters", "verdict", "timing"} <= set(evaluation)
    assert set(evaluation["timing"]["stages"]) == {"data", "base", "experts", "router", "mixture", "evaluation"}
    assert {sample["domain"] for sample in evaluation["samples"]} == {"adds", "says", "unseen"}


def test_at_site_linear_uniform_is_the_merged_average(first):
    controls = first[2]["controls"]
    for domain, nats in controls["uniform"]["nats"].items():
        assert nats == pytest.approx(controls["average"]["nats"][domain], rel=1e-5)


def test_random_is_the_exact_mean_over_the_experts(first):
    controls = first[2]["controls"]
    mean = (controls["expert:adds"]["nats"]["all"] + controls["expert:says"]["nats"]["all"]) / 2
    assert controls["random"]["nats"]["all"] == pytest.approx(mean)


def test_a_router_that_picks_one_expert_scores_what_the_experts_score(first):
    """The mixture was really run for `router`; rivals are looked up in the experts' scores. They must agree."""
    recipe, root, evaluation = first
    names = tuple(recipe.experts)
    run = opened(recipe, root)
    rows = run.task.test_rows
    decided = decide(run.address, silent())["router"][0]
    contenders = ("base", *(f"expert:{name}" for name in names))
    scores = {name: score_contender(run.address, name, silent()) for name in contenders}
    found = looked_up(scores, names, decided)
    ran = score_router(run.address, "router", decided, silent())
    np.testing.assert_allclose(found.nats, ran.nats, rtol=1e-5)
    assert len(ran.nats) == sum(map(len, rows.values()))
    assert evaluation["controls"]["router"]["nats"]["all"] == pytest.approx(
        ran.nats[ran.rows("all")].sum() / ran.tokens[ran.rows("all")].sum()
    )


def test_every_part_says_what_it_is(first):
    recipe, root, _ = first
    base = load_base(root / "base")
    for name in recipe.experts:
        manifest = read_manifest(root / "experts" / name / "best", "expert")
        assert manifest["base_fingerprint"] == base.fingerprint
        assert set(manifest["grid"]) == {"0.01", "0.03"}
        assert manifest["metrics"]["validation_nats"] == min(manifest["grid"].values())
        assert manifest["lr"] == float(min(manifest["grid"], key=manifest["grid"].get))
    info = json.loads((root / "router" / "training_info.json").read_text())
    assert info["validation"]["macro_f1"] <= 1 and info["curve"] and info["examples"]["adds"] > 40
    for rate in ("0.01", "0.03"):
        log = (root / f"metrics/experts/adds/lr-{rate}.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == list(range(1, 13)), "every step, once"


def test_the_costs_of_contenders_are_counted_from_their_files(first):
    """One expert answers a row, so the mixture reads the base, the router, and an adapter of average size."""
    recipe, root, evaluation = first

    def numbers(folder: Path) -> int:
        files = [load_file(path) for path in folder.glob("*.safetensors")]
        return sum(tensor.numel() for file in files for tensor in file.values())

    base, router = numbers(root / "base"), sum(p.numel() for p in load_router(root / "router").router.parameters())
    adapters = {name: numbers(root / "experts" / name / "best") for name in recipe.experts}
    expected = {"base": base, "average": base} | {f"expert:{name}": base + size for name, size in adapters.items()}
    expected |= {name: base + numbers(root / "controls" / name / "best") for name in ("joint", "joint_wide")}
    costs = {name: control["cost"] for name, control in evaluation["controls"].items() if "cost" in control}
    assert {name: cost["parameters"] for name, cost in costs.items() if name != "router"} == expected
    weights = decide(opened(recipe, root).address, silent())["router"][0]
    chosen = sum(size * share for size, share in zip(adapters.values(), weights.mean(0).tolist(), strict=True))
    assert costs["router"]["parameters"] == pytest.approx(base + router + chosen, abs=1)
    assert all(cost["bytes"] == 4 * cost["parameters"] for cost in costs.values())


def test_joint_is_one_adapter_with_all_steps_and_joint_wide_has_all_ranks(first):
    recipe, root, _ = first
    run = opened(recipe, root)
    adds, joint, wide = (plan_of(run, name) for name in ("adds", "joint", "joint_wide"))
    assert [plan.design.rank for plan in (adds, joint, wide)] == [2, 4, 6]
    assert [plan.design.scale for plan in (adds, joint, wide)] == [2.0, 2.0, 2.0], "all scaled alike"
    assert joint.settings.steps == wide.settings.steps == 2 * adds.settings.steps
    assert len(joint.train) == 2
    assert read_manifest(root / "controls/joint_wide/best")["rank"] == 6


@pytest.mark.slow
def test_run_again_skips_what_is_finished_and_a_change_redoes_what_depends_on_it(first, texts):
    _, root, evaluation = first
    before = {path: path.resolve().name for path in root.rglob("best")}
    told = Notes()
    again = moesaic.run(recipe_in(texts), root, told)
    everything = {"base", "adds", "says", "joint", "joint_wide", "mixture", "evaluation"}
    everything |= {*specs(opened(recipe_in(texts), root))}
    assert set(told.skipped) == everything
    assert {path: path.resolve().name for path in root.rglob("best")} == before
    same = {key: value for key, value in again.items() if key != "timing"}
    assert same == {key: value for key, value in evaluation.items() if key != "timing"}, "equal but for the timing"

    told = Notes()
    stages.train_expert(recipe_in(texts, "experts.adds.rank=3"), root, ["adds", "says"], told)
    assert told.skipped == ["says"] and told.ended == ["adds"]
    assert read_manifest(root / "experts/adds/best")["rank"] == 3
    with pytest.raises(RecipeError, match="no expert 'add' is trained here"):
        stages.train_expert(recipe_in(texts), root, ["add"])
    stages.train_expert(recipe_in(texts), root, ["adds"])


ROUTERS = {"router", "centroid-hidden_mean", "mlp-hidden_mean-soft", "keyword-text"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["evaluate.limit=4", "workers=3", "evaluate.samples=0"], set()),
        (["bad_rows=skip", "max_bad=3"], set()),
        (["evaluate.joint.lr=2e-3"], {"joint"}),
        (["experts.says.alpha=3"], {"says", "joint", "joint_wide"}),
        (["experts.adds.train.steps=3"], {"adds", "joint", "joint_wide"}),
        (["experts.adds.keywords=[what]"], ROUTERS),
        (["router.loss.balance=0.1"], {"router"}),
        (["router.renormalise=false"], {"router"}),
        (["router.compare[0].examples=3"], {"centroid-hidden_mean-3"}),
        (["router.prompt_tokens=9"], {"adds", "says", "joint", "joint_wide", *ROUTERS}),
        (["experts.adds.data.validation=0.3"], {"adds", "joint", "joint_wide", *ROUTERS}),
        (["experts.adds.data.test=says_test.jsonl"], set()),
        (["seed=1"], {"adds", "says", "joint", "joint_wide", *ROUTERS}),
    ],
)
def test_what_depends_on_a_change_is_stale_and_nothing_else(first, texts, overrides, expected):
    assert stale(opened(recipe_in(texts, *overrides), first[1])) == expected


@pytest.mark.parametrize(
    "override",
    ["evaluate.limit=4", "evaluate.samples=0", "experts.adds.data.test=says_test.jsonl", "evaluate.unseen=[]"],
)
def test_the_evaluation_depends_on_what_is_judged_and_how(first, texts, override):
    keys = [EvaluationPart(opened(recipe_in(texts, *some), first[1])).key for some in ([], [], [override])]
    assert keys[0] == keys[1] != keys[2]


FILES = {  # file -> the parts that are made from it
    "adds.jsonl": {"base", "adds", "joint", "joint_wide", *ROUTERS},
    "held.jsonl": {"base", "adds", "joint", "joint_wide", *ROUTERS},
    "adds_test.jsonl": {"evaluation"},
    "other.jsonl": {"evaluation"},
    "asked.jsonl": ROUTERS,
}
READ = ("prompt", "response", "text", "correct_answers", "incorrect_answers")
"""The keys of these rows that stages read."""


@pytest.fixture(scope="module")
def inputs(first, texts, tmp_path_factory) -> tuple[Path, Callable[[], dict[str, str]]]:
    """Files of every use, and a function that gives the key of every part that is made from them."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(texts, folder, dirs_exist_ok=True)
    asks = [{"prompt": f"What is {n} - 1?", "response": f"It is {n - 1}.", "id": n} for n in range(200, 220)]
    for name, rows in (("held.jsonl", asks[:8]), ("asked.jsonl", asks[8:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = [json.loads(line) for line in (folder / "adds_test.jsonl").read_text().splitlines()]
    judged = [{**row, "correct_answers": [f"{row['response']}!"], "incorrect_answers": ["It is 1."]} for row in judged]
    (folder / "adds_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    foreign = f"experts.foreign={{kind: lora, path: {first[1]}/experts/adds/best, examples: asked.jsonl}}"
    recipe = recipe_in(folder, "experts.adds.data.validation=held.jsonl", foreign)

    def keys() -> dict[str, str]:
        run = opened(recipe, first[1])
        parts = [part for some in bench_of(run).parts.values() for part in some if part.name != "mixture"]
        return {part.name: part.key for part in parts}

    return folder, keys


def rows_read(path: Path) -> list[list[Any]]:
    return sorted([row.get(key) for key in READ] for row in map(json.loads, path.read_text().splitlines()))


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*FILES]), st.integers(0, 10**6), st.sampled_from([*b'07aZ "\xff']))
def test_a_byte_of_an_input_that_changes_what_is_read_changes_the_keys_of_what_is_made_from_it(inputs, name, at, byte):
    folder, keys = inputs
    path, before = folder / name, keys()
    kept, rows = path.read_bytes(), rows_read(path)
    written = [place for place, old in enumerate(kept) if chr(old).isalnum()]  # other bytes are refused, for the most
    changed = bytearray(kept)
    changed[written[at % len(written)]] = byte
    path.write_bytes(changed)
    try:
        after = keys()
        same = rows_read(path) == rows
    except DataError:
        return
    finally:
        path.write_bytes(kept)
    stale = {part for part, key in after.items() if key != before[part]}
    assert stale == (set() if same else FILES[name])


@pytest.mark.slow
def test_a_router_that_was_trained_anew_comes_into_the_mixture(first, texts, tmp_path):
    """Its files may be the same: what it means stands in its manifest."""
    shutil.copytree(first[1], tmp_path / "small", symlinks=True)
    recipe, told = recipe_in(texts, "router.renormalise=false"), Notes()
    stages.train_router(recipe, tmp_path / "small", told)
    stages.compose(recipe, tmp_path / "small", told)
    assert "router" in told.ended and "centroid-hidden_mean" in told.skipped and "mixture" not in told.skipped
    assert not moesaic.load(tmp_path / "small").stored.model.decider.selection.renormalise


def test_stale_parts_are_not_judged(first, texts, tmp_path):
    shutil.copytree(first[1], tmp_path / "small", symlinks=True)
    with pytest.raises(RecipeError, match="'joint' is missing, or was made from another recipe.*--expert joint"):
        stages.evaluate(recipe_in(texts, "evaluate.joint.lr=2e-3"), tmp_path / "small")


@pytest.mark.slow
def test_a_damaged_part_is_named_and_made_anew(first, texts, tmp_path):
    shutil.copytree(first[1], tmp_path / "small", symlinks=True)
    tensors = (tmp_path / "small/experts/adds/best").resolve() / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    told = Notes()
    stages.train_expert(recipe_in(texts), tmp_path / "small", ["adds"], told)
    assert told.ended == ["adds"] and any("damaged" in note and str(tensors) in note for note in told.notes)
    assert (tmp_path / "small/experts/adds/best/adapter_model.safetensors").read_bytes() == whole


def test_what_is_judged_on_is_the_test_split_and_nobody_learns_from_it(first, texts):
    run = opened(first[0], first[1])
    judged = {row.group for some in run.task.test_rows.values() for row in some}
    for domain in run.materials.domains.values():
        assert {row.group for row in domain.test} <= judged
        assert not judged & {row.group for row in (*domain.train, *domain.validation)}
    leaky = recipe_in(texts, "experts.adds.data.train=[adds.jsonl, says_test.jsonl]")
    adds = opened(leaky, first[1]).materials.domains["adds"]
    assert adds.dropped["train: in another domain's test"] > 0
    assert not {row.group for row in adds.train} & judged


@pytest.mark.slow
def test_a_second_run_in_one_process_reads_texts_and_base_anew(texts, tmp_path):
    shutil.copytree(texts, tmp_path / "texts")
    recipe = recipe_in(tmp_path / "texts", "train.lr=1e-2", "router.compare=[]", "evaluate.controls=[base]")
    moesaic.run(recipe, tmp_path / "one")
    for name, kept in (("adds.jsonl", 40), ("adds_test.jsonl", 7)):
        rows = (tmp_path / "texts" / name).read_text().splitlines(keepends=True)
        (tmp_path / "texts" / name).write_text("".join(rows[:kept]))
    again, fresh = moesaic.run(recipe, tmp_path / "one"), moesaic.run(recipe, tmp_path / "two")
    assert again["rows"]["adds"] == 7
    assert again["stage_key"] == fresh["stage_key"] and again["controls"] == fresh["controls"]


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes(first, texts, tmp_path):
    _, root, _ = first
    stages.pretrain(recipe_in(texts), tmp_path / "small")
    stages.train_expert(recipe_in(texts), tmp_path / "small", ["says"])
    for part in ("base/model.safetensors", "experts/says/best/adapter_model.safetensors"):
        assert (tmp_path / "small" / part).read_bytes() == (root / part).read_bytes()


def test_a_mixture_moved_elsewhere_answers_the_same(first, tmp_path):
    _, root, _ = first
    here = moesaic.load(root)
    shutil.copytree(root, tmp_path / "moved", symlinks=True)
    saved = here.save_pretrained(tmp_path / "saved")
    prompts = ["What is 3 + 4?", "Once a red and old owl"]
    expected = [(g.ids, g.routing) for g in here.generate(prompts, max_new_tokens=12)]
    for place in (tmp_path / "moved", saved):
        there = moesaic.load(place)
        assert [(g.ids, g.routing) for g in there.generate(prompts, max_new_tokens=12)] == expected
        ids = torch.tensor([here.stored.tokenizer.encode(prompts[0])])
        gates = moesaic_gates(here, prompts[0])
        assert torch.equal(there.stored.model.score(ids, gates), here.stored.model.score(ids, gates))
    assert here.route(prompts[0]).chosen in here.names


def moesaic_gates(mixture, text):
    from moesaic.model.features import Prompts
    from moesaic.routing import Gates

    prompts = Prompts.pad([mixture.stored.tokenizer.encode(text)], [text])
    return Gates.of(mixture.stored.model.route(prompts).weights)


def test_verify_leaves_the_recipe_as_it_was(first, texts):
    _, root, _ = first
    at, before = root / "recipe.yaml", (root / "recipe.yaml").read_bytes()
    stages.verify_expert(recipe_in(texts, "train.steps=99"), root, ["adds"])
    assert at.read_bytes() == before


def test_verify_reads_back_what_was_published_and_notices_what_changed(first, tmp_path):
    recipe, root, _ = first
    shutil.copytree(root, tmp_path / "small", symlinks=True)
    run = opened(recipe, tmp_path / "small")
    found = verify_expert(run, "adds")
    assert found["validation_nats"] == pytest.approx(found["manifest"], rel=1e-5)
    tensors = run.dir.part_at("adds").resolve() / "adapter_model.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(WeightsError, match=r"adapter_model.safetensors: sha256: the file was changed or damaged"):
        verify_expert(run, "adds")


def test_verify_refuses_an_expert_that_is_whole_but_does_not_do_what_it_says(first, tmp_path):
    """Its hashes are right: only measuring it again shows that its metrics are another expert's."""
    recipe, root, _ = first
    shutil.copytree(root, tmp_path / "small", symlinks=True)
    run = opened(recipe, tmp_path / "small")
    at, base = run.dir.part_at("adds"), run.models.base.fingerprint
    stored = load_expert(at)
    facts = {"metrics": {"validation_nats": stored.manifest["metrics"]["validation_nats"] * 0.99}}
    run.dir.publish(at, lambda folder: save_expert(folder, stored.lora, base, facts), 0)
    with pytest.raises(CompatibilityError, match="does not do what its manifest says"):
        verify_expert(run, "adds")


def republished(run: RunDir, at: Path, **changes: Any) -> None:
    """Publish a part anew with other fields in its manifest, and right hashes."""
    before = read_manifest(at)
    fields = {key: value for key, value in before.items() if key not in ("format_version", "package_version", "files")}

    def write(folder: Path) -> None:
        for name in before["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(at / name, folder / name)
        write_manifest(folder, fields | changes)

    run.publish(at, write, 0)


def test_figures_that_a_manifest_lacks_are_named(first, tmp_path):
    recipe, root, _ = first
    shutil.copytree(root, tmp_path / "small", symlinks=True)
    run = opened(recipe, tmp_path / "small")
    republished(run.dir, run.dir.part_at("adds"), metrics={"step": 3})
    with pytest.raises(WeightsError, match=r"manifest.json: metrics.validation_nats: the field is missing"):
        verify_expert(run, "adds")
    republished(run.dir, run.dir.router_at("router"), metrics={})
    run.dir.evaluation_at.unlink()
    with pytest.raises(WeightsError, match=r"manifest.json: metrics.validation_macro_f1: the field is missing"):
        stages.evaluate(recipe, tmp_path / "small")


def test_an_evaluation_in_an_unknown_unit_is_made_anew(first, tmp_path):
    recipe, root, found = first
    shutil.copytree(root, tmp_path / "small", symlinks=True)
    at, told = tmp_path / "small" / "evaluation.json", Told()
    write_sealed(at, read_sealed(at) | {"measure": 2147483648})
    assert stages.evaluate(recipe, tmp_path / "small", told)["controls"].keys() == found["controls"].keys()
    assert any("evaluation.json: measure: the wrong type; expected nats or score" in text for text in told.warnings)


def test_logs_that_are_gone_or_cut_are_told_and_cost_no_training(first, tmp_path):
    recipe, root, _ = first
    shutil.copytree(root, tmp_path / "small", symlinks=True)
    logs = tmp_path / "small" / "metrics"
    assert [*RunDir(recipe, tmp_path / "small").lost_logs(tmp_path / "small" / "experts" / "adds" / "best")] == []
    (lost, *_), (cut, *_) = sorted((logs / "experts/adds").iterdir()), sorted((logs / "experts/says").iterdir())
    rows = cut.read_bytes().splitlines(keepends=True)
    lost.unlink()
    cut.write_bytes(b"".join(rows[:-1]))
    told = Told()
    stages.train_expert(recipe, tmp_path / "small", [], told)
    assert any(f"{lost.name}: none of {len(rows)} rows" in text for text in told.warnings)
    assert any(f"says/{cut.name}: {len(rows) - 1} of {len(rows)} rows" in text for text in told.warnings)
    assert len(told.warnings) == 2 and not lost.exists(), told.warnings


def test_the_files_of_a_run_name_no_folder_of_this_machine(texts, tmp_path):
    """Beside a base and rows in other folders that the recipe names by absolute paths."""
    shutil.copytree(texts, tmp_path / "here" / "texts")
    rows = tmp_path / "here" / "texts" / "adds.jsonl"
    rows.write_text(rows.read_text() + '{"prompt": "a row without an answer"}\n')
    quick = ("train.lr=1e-2", "router.compare=[]", "evaluate.controls=[base]", "bad_rows=skip")
    recipe = recipe_in(tmp_path / "here" / "texts", *quick)
    stages.pretrain(recipe, tmp_path / "here" / "first")
    base = f"base={{path: {tmp_path / 'here' / 'first' / 'base'}}}"
    root = tmp_path / "here" / "second"
    over = recipe_in(tmp_path / "here" / "texts", *quick, base)
    moesaic.run(over, root)
    assert "adds.jsonl" in (root / "rejects.jsonl").read_text()
    for name in ("recipe.yaml", "data.json", "rejects.jsonl", "evaluation.json", "report/index.html"):
        assert str(tmp_path) not in (root / name).read_text(), name
    assert moesaic.read_recipe(root / "recipe.yaml") == over


def test_an_expert_of_another_base_is_refused(first, texts, tmp_path):
    recipe, root, _ = first
    shutil.copytree(root, tmp_path / "small", symlinks=True)
    stages.pretrain(recipe_in(texts, "seed=1"), tmp_path / "small")
    with pytest.raises(CompatibilityError, match="trained on another base"):
        stages.compose(recipe, tmp_path / "small")


@pytest.mark.slow
def test_experts_and_a_base_from_elsewhere_are_joined_by_a_few_examples(first, texts, tmp_path):
    """A PEFT folder without our manifest and an expert of ours, over a base that stands: only routers are trained."""
    _, root, evaluation = first
    shutil.copytree(root / "experts/adds/best", tmp_path / "foreign")
    (tmp_path / "foreign" / "manifest.json").unlink()
    data = {split: str(texts / f"says{suffix}.jsonl") for split, suffix in (("train", ""), ("test", "_test"))}
    recipe = parse(
        {
            "name": "joined",
            "workers": 1,
            "base": {"path": str(root / "base")},
            "train": {"length": 64},
            "experts": {
                "adds": {"kind": "lora", "path": str(tmp_path / "foreign"), "examples": str(texts / "adds.jsonl")},
                "says": {"kind": "lora", "path": str(root / "experts/says/best"), "data": data},
            },
            "router": {"kind": "linear", "feature": "embedding_mean", "epochs": 5},
            "evaluate": {"samples": 0},
        }
    )
    found = moesaic.run(recipe, tmp_path / "joined")
    assert "joint" not in found["controls"] and found["domains"] == ["says"]
    assert found["controls"]["expert:says"]["nats"]["says"] == pytest.approx(
        evaluation["controls"]["expert:says"]["nats"]["says"]
    )
    assert moesaic.load(tmp_path / "joined").route("What is 9 + 2?").chosen == "adds"


def test_a_rate_that_diverges_loses_and_if_all_do_the_training_stops(first, texts, tmp_path, monkeypatch):
    recipe, root, _ = first
    shutil.copytree(root / "base", tmp_path / "base")
    address, honest = opened(recipe, tmp_path).address, experts.fit

    def only_small_rates(*arguments, **named):
        if arguments[5] > 0.02:
            raise NonFiniteError("infinite")
        return honest(*arguments, **named)

    monkeypatch.setattr(experts, "fit", only_small_rates)
    experts.train_one(address, "adds", silent())
    manifest = read_manifest(tmp_path / "experts/adds/best")
    assert manifest["lr"] == 0.01 and manifest["grid"]["0.03"] is None
    monkeypatch.setattr(experts, "fit", lambda *a, **more: (_ for _ in ()).throw(NonFiniteError("infinite")))
    with pytest.raises(NonFiniteError):
        experts.train_one(address, "adds", silent())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.length=200", "train.length: rows longer than the context of the base; expected <= 128; got 200"),
        ("experts.adds.train.length=200", "experts.adds.train.length: rows longer than the context"),
        (
            "router.compare[0].feature=hidden@3",
            "router.compare[0].feature: the router reads a layer that the base lacks",
        ),
    ],
)
def test_what_does_not_fit_the_base_is_refused_before_any_training(first, texts, tmp_path, override, said):
    shutil.copytree(first[1], tmp_path / "small", symlinks=True)
    with pytest.raises(RecipeError, match=re.escape(said)):
        stages.train_expert(recipe_in(texts, override), tmp_path / "small", ["adds"])


def test_small_domains_are_repeated_for_joint_training():
    a, b, c, d = (Tokens([n, n], 1, "g") for n in range(4))
    assert [*even([[a, b, c], [d]])] == [a, b, c, d, d, d]


def test_pretraining_reads_a_conversation_once():
    turns = [Example("hi", "hello", "g"), Example("hi\nhello\nhow are you", "fine", "g"), Example("", "text", "h")]
    assert [*Longest([turns])] == [turns[1], turns[2]]


def test_compared_routers_have_names_of_their_own(texts):
    labels = [label_of(spec) for spec in recipe_in(texts).router.compare]
    assert labels == ["centroid-hidden_mean", "mlp-hidden_mean-soft"]
