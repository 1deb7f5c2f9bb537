"""Journey: a small real run in which routers learn from what the mixture loses: what they ask of the
experts, say and leave.
"""

import json
from typing import Any

import pytest
import torch
from small_runs import opened, silent, stale

import moesaic
from moesaic import stages
from moesaic.artefacts.router import load_router
from moesaic.compose.mixture import load_mixture
from moesaic.errors import RecipeError
from moesaic.evaluate.table import plain
from moesaic.files import read_manifest
from moesaic.model.deciding import Decider
from moesaic.model.features import Prompts
from moesaic.recipe import Recipe, parse
from moesaic.routing import States
from moesaic.runs.directory import RunDir
from moesaic.stages.routers import UNTAUGHT, label_of, read_features, rows_of, specs
from moesaic.tasks import Run
from moesaic.testing import prefilled
from moesaic.train.mixture_loss import computed, language

pytestmark = pytest.mark.slow  # whole runs

GUMBEL, NOISY = {"kind": "gumbel"}, {"kind": "noisy_top_k"}
ROUTER: dict[str, Any] = {
    "kind": "linear",
    "feature": "hidden_mean",
    "epochs": 3,
    "patience": 0,
    "lr": 0.05,
    "selection": "soft",
    "loss": {"task": 1, "expert": 0},
    "compare": [
        {"kind": "linear", "epochs": 2, "loss": {"task": 1, "expert": 0}, "exploration": GUMBEL},
        {"kind": "linear", "epochs": 2, "loss": {"task": 1}},
        {"kind": "attention", "hidden": [8], "heads": 2, "epochs": 2, "exploration": NOISY},
        {"kind": "linear", "feature": "hidden_last", "bias": False, "epochs": 2, "exploration": NOISY},
        {"kind": "linear", "epochs": 2, "loss": {"balance": 0.5}, "mix": "proportional"},
        {"kind": "linear", "epochs": 2},
    ],
}
LABELS = [
    *("router", "linear-hidden_mean-task-1-expert-0-gumbel", "linear-hidden_mean-task-1"),
    *("attention-hidden_tokens-noisy_top_k", "linear-hidden_last-noisy_top_k", "linear-hidden_mean-balance-0.5"),
    *("linear-hidden_mean", "keyword-text"),
]


class Warnings:
    """A Progress that remembers what it was warned of."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def note(self, text: str) -> None: ...
    def begin(self, task: str, steps: int) -> None: ...
    def row(self, task: str, row: dict[str, Any]) -> None: ...
    def end(self, task: str, text: str) -> None: ...


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("texts")

    def write(name: str, rows: list[dict[str, str]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    sums = [{"prompt": f"What is {n} + {n % 7}?", "response": f"It is {n + n % 7}."} for n in range(50)]
    cries = [{"prompt": f"Cry of bird {n * 7}", "response": "zzz qq " * (1 + n % 3)} for n in range(50)]
    for name, rows in (("sums", sums), ("cries", cries)):
        write(f"{name}.jsonl", rows[:40])
        write(f"{name}_test.jsonl", rows[40:])
    # Listed against the alphabet: whoever numbers experts by their folders' order gets the labels wrong.
    experts = {
        name: {"kind": "lora", "rank": 2, "data": {"train": f"{name}.jsonl", "test": f"{name}_test.jsonl"}}
        for name in ("sums", "cries")
    }
    pretrain = {"steps": 10, "batch": 4, "length": 64, "lr": 1e-2, "evaluate_every": 0}
    return parse(
        {
            "name": "taught",
            "workers": 1,
            "data_root": str(folder),
            "base": {"size": "nano", "vocab_size": 300, "pretrain": pretrain},
            "train": {"steps": 25, "batch": 4, "length": 64, "lr": 3e-2, "evaluate_every": 0},
            "experts": experts,
            "router": ROUTER,
            "evaluate": {"controls": ["base"], "samples": 0},
        }
    )


@pytest.fixture(scope="module")
def made(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any], list[str]]:
    root, told = tmp_path_factory.mktemp("runs") / "taught", Warnings()
    evaluation = moesaic.run(recipe, root, told)
    return opened(recipe, root), evaluation, told.warned


def manifests(run: Run) -> dict[str, dict[str, Any]]:
    return {name: read_manifest(run.dir.router_at(name)) for name in specs(run)}


def test_routers_are_called_by_what_they_learn_from(made):
    run, evaluation, _ = made
    assert [*specs(run)] == LABELS and label_of(specs(run)["keyword-text"]) == "keyword-text"
    told = [tried["loss"] for tried in evaluation["router"]["tried"]]
    assert told == [
        "task",
        "task, gumbel",
        "task + expert",
        *["expert, noisy_top_k"] * 2,
        "expert + 0.5 balance",
        "expert",
        None,
    ]


def test_where_the_loss_of_the_task_teaches_nothing_it_is_said_once_and_stays_on_record(made):
    run, _, warned = made
    assert warned == [f"router {LABELS[2]}: {UNTAUGHT}"]
    taught = {
        name: manifest["task_gradient"] for name, manifest in manifests(run).items() if "task_gradient" in manifest
    }
    assert taught == {LABELS[0]: True, LABELS[1]: True, LABELS[2]: False}


def test_the_loss_that_is_told_is_the_mixtures_own_on_validation(made):
    """Measured again by the mixture as it is used, row by row."""
    run, _, _ = made
    stored = load_mixture(run.dir.mixture_at)
    names = stored.model.names
    read = [
        read_features(run.address, name, "validation", {"hidden_mean": 400}, silent()).features["hidden_mean"]
        for name in names
    ]
    rows = [row for name in names for row in rows_of(run, name, "validation", 400)]
    weights = stored.model.decider.weigh(torch.cat(read), torch.device("cpu"), run.task.texts(rows)).weights.detach()
    lost = count = 0.0
    for row, one in zip(rows, weights, strict=True):
        nats, tokens = computed(language(stored.model.decoder, [row]))(torch.tensor([0]), one[None])
        lost, count = lost + nats.item(), count + tokens.item()
    found = manifests(run)["router"]["metrics"]["validation_task"]
    assert lost / count == pytest.approx(found, rel=1e-5)


def test_taught_by_the_task_alone_the_router_answers_better_than_an_even_mixture(made):
    run, _, _ = made
    logs = [
        json.loads(line)
        for line in next((run.dir.root / "metrics" / "router").glob("*.jsonl")).read_text().splitlines()
    ]
    tasks = [row["task"] for row in logs if "task" in row]
    assert len(tasks) == 3 and manifests(run)["router"]["metrics"]["validation_task"] == min(tasks)
    assert tasks[-1] < tasks[0]
    assert manifests(run)["router"]["metrics"]["validation_temperature"] == 1.0, "its weights are as they were learned"
    assert manifests(run)[LABELS[1]]["metrics"]["validation_temperature"] != 1.0


def test_utilisation_stands_side_by_side_with_and_without_the_load_balancing_loss(made):
    _, evaluation, _ = made
    tried = dict(zip(LABELS, evaluation["router"]["tried"], strict=True))
    for name in ("linear-hidden_mean-balance-0.5", "linear-hidden_mean"):
        assert sum(tried[name]["utilisation"].values()) == pytest.approx(1.0)
        assert 0 <= tried[name]["utilisation_entropy"] <= 0.6932
    text = plain(evaluation, 140)
    assert "evenness" in text and "expert + 0.5 balance" in text


def test_stored_routers_have_no_use_for_their_noise_and_the_same_decisions_every_time(made):
    run, _, _ = made
    for name in (LABELS[3], LABELS[4]):
        stored = load_router(run.dir.router_at(name))
        assert stored.router.noise is not None and not stored.router.training
        features = torch.randn(6, 32)
        reads = States(features, torch.tensor([4, 2])) if stored.kind == "attention" else features
        before = torch.get_rng_state()
        found = stored.router(reads)
        assert torch.get_rng_state().equal(before) and stored.router(reads).equal(found)
        stored.router.noise = None
        assert stored.router(reads).equal(found)


def test_without_the_experts_there_is_nothing_to_measure_and_it_is_said_by_name(recipe, tmp_path):
    stages.pretrain(recipe, tmp_path / "bare")
    with pytest.raises(RecipeError, match="there is no expert 'sums' yet, .*train-expert RECIPE --expert sums"):
        stages.train_router(recipe, tmp_path / "bare")


def test_a_router_is_stale_when_an_expert_changes_that_it_was_measured_with_and_no_other(made, monkeypatch):
    run, _, _ = made
    assert not stale(run)
    recipe = run.recipe
    changed = recipe.experts["sums"].model_copy(update={"rank": 1})
    honest = RunDir.identity
    monkeypatch.setattr(RunDir, "identity", lambda run, at: "another" if "sums" in str(at) else honest(run, at))
    other = opened(recipe.model_copy(update={"experts": {**recipe.experts, "sums": changed}}), run.dir.root)
    assert stale(other) == {"sums", *LABELS[:3]}


def test_a_mixture_with_an_attention_router_decides_as_it_was_judged_alone_and_in_a_batch(made):
    """Put in the place of the mixture's own: its feature is read of the base's tokens, none of them padding."""
    run, _, _ = made
    stored = load_router(run.dir.router_at(LABELS[3]))
    model = load_mixture(run.dir.mixture_at).model
    model.decider = Decider.over(model.decoder, stored.names, stored.decides, stored.reads, stored.selection)
    texts = ["What is 3 + 3?", "Cry of bird 7, and of another"]
    rows = [run.models.base.tokenizer.begin(text) for text in texts]
    together = model.route(Prompts.pad(rows, texts)).logits
    for place, row in enumerate(rows):
        alone = model.route(Prompts.pad([row], [texts[place]])).logits[0]
        torch.testing.assert_close(together[place], alone, rtol=1e-5, atol=1e-5)
    _, session = prefilled(model, Prompts.pad(rows, texts), 4)
    torch.testing.assert_close(session.routing.logits, together, rtol=1e-5, atol=1e-5)
