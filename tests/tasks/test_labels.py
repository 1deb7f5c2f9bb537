"""A small run of experts that classify over a tiny encoder: trained, verified, composed, judged, shown, asked."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import opened, silent

import moesaic
from moesaic import stages
from moesaic.artefacts.adapter import load_expert
from moesaic.cli.printing import show_run
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.evaluate.table import plain
from moesaic.files import read_jsonl, read_manifest
from moesaic.interop.encoders import save_encoder
from moesaic.recipe import Recipe, parse
from moesaic.report import compare_reports, write_report
from moesaic.stages.evaluation import EvaluationPart, looked_up, score_contender, score_router
from moesaic.stages.experts import ExpertPart
from moesaic.testing import tiny_encoder

pytestmark = pytest.mark.slow  # whole runs

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLOURS, BIRDS, DOES = ("red", "blue", "green"), ("owl", "crow", "wren"), ("sings", "sleeps", "flies")
HOW = ("loud", "quiet", "fast")
WORDS += [*COLOURS, *BIRDS, *DOES, *HOW, "the", "a", "and"]


def base_in(folder: Path) -> Path:
    """A tiny BERT with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir()
    encoder = tiny_encoder("bert", "pooler", 0, torch.float32, len(WORDS))
    save_encoder(folder, encoder)
    inner = Tokenizer(models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.add_special_tokens(WORDS[:5])
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    (folder / "tokenizer.json").write_text(inner.to_str())
    return folder


def recipe_in(folder: Path, **changes) -> Recipe:
    expert = {"kind": "lora", "rank": 2, "targets": ["query", "value"]}
    files = {split: f"{{}}_{split}.jsonl" for split in ("train", "validation", "test")}
    own = {name: {split: path.format(name) for split, path in files.items()} for name in ("bird", "same")}
    mapping = {
        "name": "labels",
        "workers": 1,
        "base": {"path": str(folder / "base")},
        "train": {"steps": 12, "batch": 8, "length": 16, "lr": [1e-2, 3e-2], "evaluate_every": 6},
        "experts": {
            "bird": {**expert, "data": {"columns": ["text"], **own["bird"]}},
            "same": {
                **expert,
                "kind": "tt_lora",
                "data": {"task": "mrpc", **own["same"]},
                "sweep": {"rank": [2, 3], "lr": [1e-2]},
            },
        },
        "router": {"kind": "linear", "feature": "hidden_mean", "epochs": 5},
        "evaluate": {"samples": 1, "joint": {"steps": 6}, "joint_wide": {"steps": 6}},
    }
    del mapping["experts"]["same"]["rank"]
    return parse({**mapping, **changes}, (), folder / "recipe.yaml")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    base_in(folder / "base")

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    every = [f"the {c} {b} {d} {h}" for c in COLOURS for b in BIRDS for d in DOES for h in HOW]
    draw = np.random.default_rng(0)
    every = [every[i] for i in draw.permutation(len(every))]
    birds = [{"text": text, "label": text.split()[2]} for text in every]
    pairs = [
        {"sentence1": a, "sentence2": (a if n % 2 else b).replace("the", "a"), "label": n % 2}
        for n, (a, b) in enumerate(pairwise(every))
    ]
    for name, rows in (("bird", birds), ("same", pairs)):
        for split, some in (("train", rows[:48]), ("validation", rows[48:60]), ("test", rows[60:])):
            write(f"{name}_{split}.jsonl", some)
    return folder


@pytest.fixture(scope="module")
def ran(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "labels"
    recipe = recipe_in(texts)
    return recipe, root, moesaic.run(recipe, root)


def test_every_expert_says_its_adapter_its_head_and_all_that_was_tried(ran):
    _, root, _ = ran
    bird, same = (read_manifest(root / "experts" / name / "best", "expert") for name in ("bird", "same"))
    assert set(bird["grid"]) == {"0.01", "0.03"} and set(same["grid"]) == {"0.01, rank 2", "0.01, rank 3"}
    assert bird["head"]["labels"] == ["crow", "owl", "wren"] and same["head"]["labels"][1] == "equivalent"
    assert bird["head"]["parameters"] == 3 * 32 + 3 and bird["head"]["pool"] == "first"
    assert same["adapter"] == "tt_lora" and same["grid"][f"0.01, rank {same['rank']}"] == max(same["grid"].values())
    assert {"validation_score", "validation_accuracy", "validation_f1", "validation_nats"} <= set(same["metrics"])
    assert len(list((root / "metrics/experts/same").glob("lr-0.01_rank-*.jsonl"))) == 2


def losses(log: Path) -> list[float]:
    return [row["loss"] for _, row in read_jsonl(log)]


def test_in_bfloat16_experts_learn_and_answer_as_in_float32_within_a_fiftieth(ran, texts, tmp_path):
    """Adapters, tensor trains and heads are float32 beside an encoder in bfloat16."""
    _, exact, _ = ran
    recipe = recipe_in(texts, dtype="bfloat16")
    for name, folder in stages.train_expert(recipe, tmp_path / "lower", []).items():
        made, wide = read_manifest(folder), read_manifest(exact / folder.relative_to(tmp_path / "lower"))
        for log in (exact / "metrics/experts" / name).glob("*.jsonl"):
            mine, theirs = losses(tmp_path / "lower/metrics/experts" / name / log.name), losses(log)
            assert mine != theirs and mine[:4] == pytest.approx(theirs[:4], rel=0.02)
        assert {one.dtype for one in load_expert(folder).lora.pairs["layers.0.attention.self.query"]} == {torch.float32}
        assert folder.name == "best" and made["base_fingerprint"] == wide["base_fingerprint"]
    assert len(stages.verify_expert(recipe, tmp_path / "lower", ["bird"])) == 1
    answers = [moesaic.load(exact, dtype=dtype).classify("the red owl sings loud") for dtype in ("float32", "bfloat16")]
    assert answers[1].label == answers[0].label and answers[1].routing.chosen == answers[0].routing.chosen
    assert answers[1].probabilities == pytest.approx(answers[0].probabilities, abs=0.02)


def test_a_step_is_logged_by_its_score_and_in_rows(ran):
    _, root, _ = ran
    text = (root / "metrics/experts/bird/lr-0.01.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 12 and all("row_rate" in row and "rate" not in row for row in rows)
    scores = {row["step"]: row["score"] for row in rows if "score" in row}
    assert [*scores] == [6, 12] and all(0 <= score <= 1 for score in scores.values())
    assert max(scores.values()) == read_manifest(root / "experts/bird/best", "expert")["grid"]["0.01"]


def test_verify_finds_the_same_figures_bit_for_bit_with_any_number_of_threads(ran):
    recipe, root, _ = ran
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for expert in stages.verify_expert(recipe, root, []):
            said = read_manifest(Path(expert["folder"]))["metrics"]
            assert expert["metrics"] == {key: said[key] for key in expert["metrics"]} and len(expert["metrics"]) > 2
    finally:
        torch.set_num_threads(threads)


def test_an_expert_that_does_not_do_what_it_says_is_refused(ran, texts, monkeypatch):
    recipe, root, _ = ran
    stored = load_expert(root / "experts/bird/best")
    with torch.no_grad():
        stored.head.out.weight.mul_(-1)
    monkeypatch.setattr("moesaic.tasks.labels.load_expert", lambda *_: stored)
    with pytest.raises(CompatibilityError, match=r"metrics\.validation_\w+: the expert does not do what its manifest"):
        stages.verify_expert(recipe, root, ["bird"])


def test_the_evaluation_holds_every_contender_in_one_label_space(ran):
    _, _, evaluation = ran
    names = "base expert:bird expert:same joint joint_wide average uniform random keyword router oracle oracle_best"
    assert set(evaluation["controls"]) == set(names.split()) and evaluation["measure"] == "score"
    for control in evaluation["controls"].values():
        assert set(control["score"]) == {"bird", "same", "all"} == set(control["nats"])
        score, low_high = control["score"], control["interval"]
        assert score["all"] == pytest.approx((score["bird"] + score["same"]) / 2)
        assert low_high[0] - 1e-9 <= score["all"] <= low_high[1] + 1e-9
        assert 0 <= control["accuracy"]["value"] <= 1
    bird, same = (evaluation["controls"][f"expert:{name}"]["score"] for name in ("bird", "same"))
    assert bird["same"] == same["bird"] == 0.0, "on another task an expert has no right answer"
    oracle = evaluation["controls"]["oracle"]["score"]
    assert (oracle["bird"], oracle["same"]) == (bird["bird"], same["same"])
    product = evaluation["router"]["accuracy"] * oracle["all"]
    assert evaluation["router"]["accuracy_x_score"] == pytest.approx(product)
    assert set(evaluation["parameters"]) >= {"experts", "heads", "router", "active"}


def test_uniform_weights_are_the_merged_average(ran):
    controls = ran[2]["controls"]
    assert controls["uniform"]["nats"]["all"] == pytest.approx(controls["average"]["nats"]["all"], rel=1e-5)


def test_a_decision_that_takes_one_expert_a_row_is_looked_up_as_it_is_computed(ran):
    recipe, root, _ = ran
    run = opened(recipe, root)
    n = sum(map(len, run.task.test_rows.values()))
    picks = torch.arange(n) % 3  # the third: nobody
    weights = torch.eye(3)[picks][:, :2]
    contenders = ("base", "expert:bird", "expert:same")
    alone = {name: score_contender(run.address, name, silent()) for name in contenders}
    found = looked_up(alone, ("bird", "same"), weights, run.task.unanswered())
    computed = score_router(run.address, "router", weights, silent())
    np.testing.assert_allclose(found.nats, computed.nats, rtol=1e-5)
    assert found.mean() == computed.mean() and (found.right() == computed.right()).all()


def test_the_base_says_the_most_frequent_label_of_the_task(ran):
    recipe, root, _ = ran
    run = opened(recipe, root)
    bird, base = run.materials.domains["bird"], score_contender(run.address, "base", silent())
    train = [row.response for row in bird.train]
    most = max(sorted(set(train)), key=train.count)
    test = [row.response for row in bird.test]
    assert 1 - base.mean("bird") == pytest.approx(test.count(most) / len(test))


def test_the_verdict_is_the_first_line_of_the_table_and_every_figure_is_shown(ran):
    _, _, evaluation = ran
    text = plain(evaluation, 120)
    assert text.startswith("Use ") and "a mean score of" in text.split("\n\n")[0].replace("\n", " ")
    assert "mixture better by" in text and "Mean score, from the best to the worst" in text
    assert f"{evaluation['controls']['joint']['score']['bird']:.3f}" in text and "x score of the oracle" in text
    assert evaluation["verdict"]["use"] != "base", "who does not know the task cannot use its majority"


def test_all_that_a_finished_run_has_to_say_is_printed_to_the_end(ran, capsys):
    _, root, evaluation = ran
    show_run(evaluation, root)
    said = capsys.readouterr().out
    assert "tokens per second" not in said and said.rstrip().endswith('"..."') and "\nNext: moesaic classify " in said


def test_the_page_of_the_run_and_of_two_runs_is_written(ran):
    _, root, evaluation = ran
    page = write_report(root).read_text()
    assert "Mean score on the same test rows" in page and 'data-key="controls.router.score.all"' in page
    assert repr(evaluation["controls"]["router"]["score"]["all"]) in page
    assert "nats per token" not in page and "Nats per token" not in page
    assert "above 0, B is better" in compare_reports(root, root).read_text()


def test_it_answers_from_its_folder_wherever_that_is_moved(ran, tmp_path):
    _, root, _ = ran
    mixture = moesaic.load(root)
    rows = ["the red owl sings loud", ("the red owl sings loud", "a red owl sings loud")]
    found = mixture.classify(rows)
    assert [one.routing.chosen for one in found] == [
        one.routing.chosen for one in (mixture.classify(rows[0]), mixture.classify(rows[1]))
    ]
    for one in found:
        assert (
            sum(one.probabilities.values()) == pytest.approx(1)
            and one.probabilities[f"{one.task}/{one.label}"] == one.probability
        )
    assert set(found[0].probabilities) == {
        "bird/crow",
        "bird/owl",
        "bird/wren",
        "same/not_equivalent",
        "same/equivalent",
    }
    assert mixture.classify(rows[0], expert="same").task == "same" and mixture.names == ("bird", "same")
    moved = moesaic.load(mixture.save_pretrained(tmp_path / "moved"))
    assert moved.classify(rows) == found and moved.route(rows[0]) == mixture.route(rows[0])
    with pytest.raises(CompatibilityError, match="answers with labels and generates no text; use classify"):
        moved.generate("the red owl")
    with pytest.raises(RecipeError, match="no such expert; expected bird or same; got base; the base has no labels"):
        moved.classify("the red owl", expert="base")


def test_run_again_skips_all_and_another_label_column_makes_the_expert_anew(ran, texts):
    recipe, root, evaluation = ran
    assert moesaic.run(recipe, root)["stage_key"] == evaluation["stage_key"]
    data = {"columns": ["text"], "labels": ["owl", "crow", "wren"], "metric": "f1"}
    files = {split: f"bird_{split}.jsonl" for split in ("train", "validation", "test")}
    changed = recipe_in(texts)
    experts = {
        **changed.experts,
        "bird": changed.experts["bird"].model_copy(
            update={"data": type(changed.experts["bird"].data).model_validate({**data, **files})}
        ),
    }
    before, after = opened(recipe, root), opened(changed.model_copy(update={"experts": experts}), root)
    assert ExpertPart(after, "bird").key != ExpertPart(before, "bird").key
    assert ExpertPart(after, "same").key == ExpertPart(before, "same").key


def test_the_label_of_f1_can_be_chosen_and_is_named_beside_the_figure(ran, texts):
    recipe, root, _ = ran
    keys, told = {}, {}
    for positive in (None, "wren", "crow"):
        given = {"columns": ["text"], "labels": ["owl", "crow", "wren"], "metric": ["f1"], "positive": positive}
        files = {split: f"bird_{split}.jsonl" for split in ("train", "validation", "test")}
        bird = recipe_in(texts).experts["bird"]
        bird = bird.model_copy(update={"data": type(bird.data).model_validate({**given, **files})})
        changed = recipe.model_copy(update={"experts": {**recipe.experts, "bird": bird}})
        run = opened(changed, root)
        keys[positive] = ExpertPart(run, "bird").key, EvaluationPart(run).key
        told[positive] = run.task.definitions["bird"]["f1"]
        grades = run.task.sheet.unanswered()
        assert grades.positive.get("bird") == (None if positive is None else ["owl", "crow", "wren"].index(positive))
    assert told == {None: "f1: the mean over labels", "wren": "f1 of 'wren'", "crow": "f1 of 'crow'"}
    assert len({key for some in keys.values() for key in some}) == 6


def test_a_frozen_head_stays_as_it_is_drawn(texts, tmp_path):
    changes = {"base": {"path": str(texts / "base"), "pool": "mean"}, "train": {"steps": 2, "batch": 4, "length": 16}}
    recipe = recipe_in(texts, **changes)
    bird = recipe.experts["bird"].model_copy(update={"head": "frozen"})
    recipe = recipe.model_copy(update={"experts": {"bird": bird}})
    stages.train_expert(recipe, tmp_path / "one", ["bird"])
    stages.train_expert(recipe.model_copy(update={"seed": 1}), tmp_path / "two", ["bird"])
    one, two = (load_expert(tmp_path / run / "experts/bird/best") for run in ("one", "two"))
    assert one.manifest["head"] | {"labels": 0} == {
        **one.manifest["head"],
        "labels": 0,
        "trained": False,
        "pool": "mean",
    }
    assert not one.head.out.bias.any() and not one.head.out.weight.equal(two.head.out.weight)
    again = stages.verify_expert(recipe, tmp_path / "one", ["bird"])
    assert again[0]["metrics"]["validation_score"] == one.manifest["metrics"]["validation_score"]
