"""Journey: three tasks learned one after another, killed on the way, continued, and compared."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from small_runs import Told, opened

from moesaic import stages
from moesaic.errors import RecipeError
from moesaic.evaluate.continual import forgetting, overall
from moesaic.evaluate.score import score
from moesaic.files import read_json
from moesaic.recipe import parse
from moesaic.routing.controls import oracle
from moesaic.stages import sequences
from moesaic.stages.experts import folders_of, plan_of
from moesaic.stages.sequences import SequencePart, folder_after, known_after, router_after

TASKS = {"sums": "add {} and {} is", "birds": "the {} wren and {} owls", "code": "def f{}(x): return x * {}"}
RECIPE = {
    "name": "three",
    "workers": 1,
    "base": {"size": "nano", "vocab_size": 300, "pretrain": {"steps": 12, "batch": 4, "length": 48, "lr": 1e-2}},
    "train": {"steps": 10, "batch": 4, "length": 48, "lr": [1e-2, 3e-2], "evaluate_every": 0},
    "experts": {
        name: {"kind": "lora", "rank": 2, "data": {"train": f"{name}.jsonl", "test": f"{name}-test.jsonl"}}
        for name in TASKS
    },
    "router": {"kind": "linear", "feature": "embedding_mean", "epochs": 8, "abstain": "off"},
    "evaluate": {"limit": 8, "unseen": "other.jsonl"},
}


def write(path, template, start, count):
    rows = (
        {"prompt": template.format(n, n + 1), "response": f"{template[:3]} {n}"} for n in range(start, start + count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continual")
    for name, template in TASKS.items():
        write(folder / f"{name}.jsonl", template, 0, 40)
        write(folder / f"{name}-test.jsonl", template, 100, 8)
    write(folder / "other.jsonl", "who sees {} of {}?", 0, 6)
    with (folder / "sums.jsonl").open("a") as file:  # a row that a later task is judged on
        file.write((folder / "code-test.jsonl").read_text().partition("\n")[0] + "\n")
    return folder


def recipe_in(folder, **changes):
    return parse({**copy.deepcopy(RECIPE), **changes}, (), folder / "recipe.yaml")


@pytest.fixture(scope="module")
def done(folder):
    recipe = recipe_in(folder)
    return recipe, folder / "run", stages.continual(recipe, folder / "run")


def test_every_score_is_that_of_the_files_of_its_strategy(done):
    recipe, root, found = done
    run = opened(recipe, root)
    rows, names = run.task.test_rows, [*TASKS]
    assert found["tasks"] == names and found["rows"] == {**dict.fromkeys(names, 8), "unseen": 6}

    def nats(logits, weights):
        made = score(logits, rows, weights, 4)
        return [made.mean(name) for name in names], [made.mean("unseen")]

    with torch.inference_mode():
        base = nats(run.task.foundation.decoder.score, None)
        assert found["before"]["nats"] == pytest.approx(base[0]) and found["before"]["others"] == pytest.approx(base[1])
        for strategy in ("sequential", "replay"):
            for after, name in enumerate(names):
                plan = plan_of(run, name)
                alone = plan.kind.reload(folder_after(run, strategy, after), run.task.fresh(), plan.design)
                own = nats(alone.decoder.score, alone.gates(sum(map(len, rows.values()))).weights)
                some = found["strategies"][strategy]
                assert some["nats"][after] == pytest.approx(own[0]) and some["others"][after] == pytest.approx(own[1])
        # an oracle's row is of its own task's expert where there is one already, else of the base
        labels = torch.tensor([names.index(name) if name in names else -1 for name, some in rows.items() for _ in some])
        for after in range(len(names)):
            decoder = run.task.frozen_experts(folders_of(run))
            known = torch.where(labels <= after, labels, -1)
            own = nats(decoder.score, oracle(known, len(names)))
            assert found["strategies"]["oracle"]["nats"][after] == pytest.approx(own[0])
    assert found["strategies"]["oracle"]["nats"][0][1:] == pytest.approx(base[0][1:])


def test_the_figures_are_those_of_the_matrix(done):
    _, _, found = done
    for some in found["strategies"].values():
        scores = -np.array(some["nats"])
        figures = some["figures"]
        assert figures["OP"]["value"] == pytest.approx(-overall(scores))
        assert figures["forgetting"]["value"] == pytest.approx(forgetting(scores)[:-1].mean())
        assert all(low <= one["value"] <= high for one in figures.values() for low, high in [one["interval"]])
    oracle_figures = found["strategies"]["oracle"]["figures"]
    assert oracle_figures["BWT_GEM"] == {"value": 0, "interval": [0, 0]}  # fixed experts, fixed decisions
    gains = found["gain_of_isolated_over"]
    apart = [found["strategies"][name]["figures"]["OP"]["value"] for name in ("replay", "isolated")]
    assert gains["replay"]["value"] == pytest.approx(apart[0] - apart[1])
    low, high = gains["replay"]["interval"]
    said = "is better than" if low > 0 else "is worse than" if high < 0 else "is not clearly different from"
    assert said in found["sentence"]


def test_a_later_task_is_learned_from_its_own_rows_and_a_tenth_of_the_earlier(done):
    recipe, root, _ = done
    run = opened(recipe, root)
    domains, names = run.materials.domains, [*TASKS]
    for strategy, share in (("sequential", 0), ("replay", 4)):
        plan = SequencePart(run, strategy, 2).plan
        ((task, rows),) = plan.train.items()
        assert task == "code" and {row.group for row in domains["code"].train} <= {row.group for row in rows}
        for name in names[:2]:
            replayed = {row.group for row in rows} & {row.group for row in domains[name].train}
            assert len(replayed) == (share and -(-len(domains[name].train) // 10))
        judged = {row.group for domain in domains.values() for row in domain.test}
        assert not judged & {row.group for row in (*rows, *plan.validation[task])}


def test_a_router_knows_the_experts_so_far_and_learns_from_their_rows_alone(done):
    recipe, root, found = done
    run = opened(recipe, root)
    for after, name in enumerate(TASKS):
        part = router_after(run, after)
        info = read_json(part.at / "training_info.json")
        assert [*info["examples"]] == [*TASKS][: after + 1] and part.at.name == f"after-{name}"
        known = known_after(run, after)
        assert [*known.recipe.experts] == [*TASKS][: after + 1] and [*known.materials.domains] == [*TASKS]
        assert known.materials.domains["sums"].dropped["train: in another domain's test"] == 1
        assert len(known_after(known, after).recipe.experts) == after + 1 == known.address.first or after == 2
    assert found["router_accuracy"][0] == 1.0 and len(found["router_accuracy"]) == 3


def test_finished_parts_are_skipped_and_a_change_redoes_what_follows(done, folder, tmp_path):
    recipe, root, found = done
    copied = tmp_path / "run"
    shutil.copytree(root, copied, symlinks=True)
    told = Told()
    assert stages.continual(recipe, copied, told) == found
    skipped = {note.partition(":")[0] for note in told.notes if note.endswith("skipped")}
    assert skipped >= {"sequential-birds", "sequential-code", "replay-code", "after-sums", "after-code", "continual"}
    experts = copy.deepcopy(RECIPE["experts"])
    experts["code"]["train"] = {"steps": 4}
    told = Told()
    stages.continual(recipe_in(folder, experts=experts), copied, told)
    skipped = {note.partition(":")[0] for note in told.notes if note.endswith("skipped")}
    assert {"sums", "birds", "sequential-birds", "replay-birds", "after-birds"} <= skipped
    assert not {"code", "sequential-code", "replay-code", "continual"} & skipped


def test_killed_between_two_tasks_it_goes_on(done, folder, tmp_path, monkeypatch):
    recipe, _, found = done
    whole = sequences.train_further

    def dies(address, strategy, index, report):
        if index == 2:
            raise KeyboardInterrupt
        whole(address, strategy, index, report)

    monkeypatch.setattr(sequences, "train_further", dies)
    with pytest.raises(KeyboardInterrupt):
        stages.continual(recipe, tmp_path / "run")
    monkeypatch.undo()
    told = Told()
    again = stages.continual(recipe, tmp_path / "run", told, restart=["replay-code", "after-birds"])
    assert "sequential-birds: finished, skipped" in told.notes
    assert {key: again[key] for key in again if key != "timing"} == {
        key: found[key] for key in found if key != "timing"
    }


def test_the_page_shows_every_figure_of_its_file(done):
    _, root, found = done
    page = (root / "report" / "continual.html").read_text()
    for strategy, some in found["strategies"].items():
        assert f'data-value="{some["figures"]["FWT"]["value"]!r}"' in page
        assert all(f'data-value="{value!r}"' in page for row in some["nats"] for value in row), strategy
    assert found["sentence"] in page


ONE = {"sums": RECIPE["experts"]["sums"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experts": ONE}, "one task is no sequence"),
        ({"experts": {**RECIPE["experts"], "code": {**RECIPE["experts"]["code"], "rank": 4}}}, "experts.code"),
        ({"router": {**RECIPE["router"], "kind": "tree", "groups": {"a": ["sums"], "b": ["birds", "code"]}}}, "groups"),
        (
            {
                "experts": {
                    **RECIPE["experts"],
                    "code": {**RECIPE["experts"]["code"], "rank": None, "sweep": {"rank": [2]}},
                }
            },
            "sweep",
        ),
    ],
)
def test_recipes_that_are_no_sequence_are_refused(folder, tmp_path, change, said):
    if "sweep" in said:
        change["experts"]["code"].pop("rank", None)
    with pytest.raises(RecipeError, match=said):
        stages.continual(recipe_in(folder, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
