"""What stands where in the sections: order, marks, scales, folded texts and the panels of the training."""

import pytest

from moesaic.report.reading import read_run
from moesaic.report.sections import axis, contenders, counted, domains_of, experts_of, heat, samples, text_rows
from moesaic.report.training import grids, panels


def test_contenders_come_best_first_with_what_to_use_marked(evaluation):
    table = contenders(evaluation)
    nats = [evaluation["controls"][row.name]["nats"]["all"] for row in table.rows]
    assert nats == sorted(nats) and len(nats) == len(evaluation["controls"])
    assert [row.name for row in table.rows if row.chosen] == [evaluation["verdict"]["use"]]
    assert {row.name for row in table.rows if row.bound} == {"random", "oracle", "oracle_best"}
    evaluation["verdict"]["tied"] = ["router", "joint"]
    marks = {row.name: row.notes for row in contenders(evaluation).rows if row.notes}
    bounds = {"random": ["chance"], "oracle": ["bound"], "oracle_best": ["bound"]}
    assert marks == {"router": ["use this"], "joint": ["tied"], **bounds}


def test_the_forest_puts_0_and_the_intervals_within_the_axis_on_one_scale(evaluation):
    table = contenders(evaluation)
    placed = {row.name: row.forest for row in table.rows}
    assert placed.pop("router") is None
    (left, right), (low, high) = table.ends, (0, 100)
    assert left < 0 < right and low < table.zero < high
    for name, forest in placed.items():
        versus = evaluation["controls"][name]["versus_router"]
        ends = [100 * (min(max(one, left), right) - left) / (right - left) for one in versus["interval"]]
        assert [forest.low, forest.high] == pytest.approx(ends, abs=0.01)
        assert (forest.left, forest.right) == (versus["interval"][0] < left, versus["interval"][1] > right)
        assert (forest.mean is None) == (not left <= versus["difference"] <= right)
        assert forest.mean is None or (forest.mean > table.zero) == (versus["difference"] > 0)


def test_a_contender_far_off_does_not_squeeze_the_rivals_of_the_mixture(evaluation):
    before = contenders(evaluation)
    evaluation["controls"]["expert:owl"]["versus_router"] = {"difference": 90.0, "interval": [80.0, 100.0]}
    after = contenders(evaluation)
    assert after.ends == before.ends
    (far,) = (row.forest for row in after.rows if row.name == "expert:owl")
    assert (far.low, far.mean, far.high, far.left, far.right) == (100, None, 100, False, True)
    evaluation["verdict"]["tied"].append("expert:owl")
    assert contenders(evaluation).ends[1] == 100.0, "what is tied with the best is always on the axis"


@pytest.mark.parametrize("interval", [[0.0, 0.0], [0.25, 0.5], [-0.5, -0.25]])
def test_0_is_never_at_the_edge_of_the_axis(interval):
    low, high = axis({"joint": {"interval": interval}}, {"joint"})
    assert low < 0 < high and low <= interval[0] and interval[1] <= high


def test_the_heat_map_is_relative_to_the_base(evaluation):
    evaluation["controls"]["router"]["nats"]["owl"] = evaluation["controls"]["expert:owl"]["nats"]["owl"]
    rows = heat(evaluation)
    assert list(rows) == ["expert:owl", "expert:wren", "router"]
    owl = {cell.domain: cell for cell in rows["expert:owl"]}
    assert list(owl) == ["owl", "wren", "unseen"]
    assert owl["owl"].better and owl["owl"].best and not owl["wren"].better and not owl["wren"].best
    assert max(cell.weight for cells in rows.values() for cell in cells) == 100
    assert not any(cell.best for cell in rows["router"])


def test_domains_keep_the_recipes_order_and_unseen_is_last(evaluation):
    evaluation["domains"] = ["wren", "owl", "nobody"]
    assert domains_of(evaluation) == ["wren", "owl", "unseen"]
    assert experts_of(evaluation) == ["owl", "wren"]


def test_tokens_are_parted_at_the_prompts_end_and_coloured_by_margin(evaluation):
    (sample,) = samples(evaluation)
    assert "".join(piece.text for piece in sample.prompt) == "How many owls"
    assert "".join(piece.text for piece in sample.reference) == "Three, I say."
    assert [(piece.owner, piece.strength) for piece in sample.prompt] == [(None, 0), (0, 1), (None, 0)]
    assert [(piece.owner, piece.strength) for piece in sample.reference] == [(None, 0), (None, 0)], "too little for one"
    assert sample.reference[0].title == "wren 1.00, base 1.30"
    assert sample.prompt[1].title == "owl 1.50, base 2.75" and sample.prompt[2].title == "base 0.50"
    assert sample.owners == [("owl", 0.25)] and not sample.cut
    assert sample.weights == [("owl", 0), ("wren", 1)]


@pytest.mark.parametrize("known", [True, False])
def test_long_texts_are_folded_where_they_matter_least_and_lose_nothing(evaluation, known):
    own = evaluation["samples"][0]
    own["prompt"] = "".join(f"line {n}\n" for n in range(300))
    own["reference"] = own["prompt"].upper()
    own["tokens"] = [[line, "owl", 1.0, 2.0] for line in (own["prompt"] + own["reference"]).splitlines(True)] * known
    (sample,) = samples(evaluation)
    parts = [sample.folded_prompt, sample.prompt, sample.reference, sample.folded_reference]
    before, prompt, reference, after = ("".join(piece.text for piece in part) for part in parts)
    assert before + prompt == own["prompt"] and reference + after == own["reference"]
    assert 100 < len(prompt) <= 320 and 100 < len(reference) <= 480


def test_rows_are_found_by_domain_and_split():
    assert text_rows({"rows": {"a/b/train": 1, "a/b/test": 2}}) == {"a/b": {"train": "a/b/train", "test": "a/b/test"}}


def test_panels_show_every_rate_and_which_was_best(make_run, tmp_path):
    shown = panels(read_run(make_run(tmp_path / "run")).logs, ["wren", "owl"])
    titles = ["base", "owl", "joint", "routers: loss", "routers: validation"]
    assert [panel.title for panel in shown] == titles
    owl = shown[1]
    assert [(line.label, line.best) for line in owl.lines] == [("rate 0.01", True), ("rate 0.03", False)]
    assert owl.lines[0].reached == pytest.approx(4.01 / 60 + 0.1) and owl.window == 3
    scores = shown[-1]
    assert [line.label for line in scores.lines] == ["router", "linear-hidden_mean-all"]
    assert scores.lines[0].reached == pytest.approx(1 - 1 / 30) and scores.measure == "macro F1"


def test_parts_are_listed_by_the_learning_rates_that_they_chose_among(make_run, tmp_path):
    rates = grids(read_run(make_run(tmp_path / "run")).logs)
    assert rates == {("0.003",): ["base"], ("0.01",): ["joint"], ("0.01", "0.03"): ["owl"]}


@pytest.mark.parametrize("margin", [0.99, 1.0, 2.0, 4.0])
def test_a_token_has_a_colour_from_a_margin_of_1_nat_on(evaluation, margin):
    evaluation["samples"][0]["tokens"] = [["How many owls", None, None, None], ["Three", "owl", 1.0, 1.0 + margin]]
    ((piece,),) = (one.reference for one in samples(evaluation))
    assert (piece.owner, piece.strength) == ((None, 0) if margin < 1 else (0, {1: 1, 2: 2, 4: 3}[int(margin)]))


def test_logs_without_validation_or_scores_are_shown_as_they_are(make_run, tmp_path):
    run = make_run(tmp_path / "run")
    for log in (run / "metrics").rglob("*.jsonl"):
        log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    shown = panels(read_run(run).logs, [])
    assert [panel.title for panel in shown] == ["base", "joint", "owl", "routers: loss"]
    assert not any(line.best for panel in shown for line in panel.lines)


def test_the_count_of_all_experts_and_the_router_is_not_called_trained():
    assert [counted(part, ("experts", "trained")) for part in ("experts", "trained")] == [
        "experts",
        "experts and router",
    ]
    assert counted("trained", ("experts", "heads", "trained")) == "experts, heads and router"
