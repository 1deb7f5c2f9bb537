"""What stands where in the sections: order, marks, scales, folded texts and the panels of the training."""

import pytest

from moesaic.report.reading import read_run
from moesaic.report.sections import contenders, counted, domains_of, experts_of, heat, samples, text_rows
from moesaic.report.training import panels


def test_contenders_come_best_first_with_what_to_use_marked(evaluation):
    table = contenders(evaluation)
    nats = [evaluation["controls"][row.name]["nats"]["all"] for row in table.rows]
    assert nats == sorted(nats) and len(nats) == len(evaluation["controls"])
    assert [row.name for row in table.rows if row.chosen] == [evaluation["verdict"]["use"]]
    assert {row.name for row in table.rows if row.bound} == {"random", "oracle", "oracle_best"}
    evaluation["verdict"]["within"] = ["joint", "router"]
    marks = {row.name: row.notes for row in contenders(evaluation).rows if row.notes and not row.bound}
    assert marks == {"router": ["use this"], "joint": ["as good"]}


def test_the_forest_puts_all_intervals_and_0_on_one_scale(evaluation):
    table = contenders(evaluation)
    placed = {row.name: row.forest for row in table.rows}
    assert placed.pop("router") is None
    assert min(low for low, _, _ in placed.values()) == 0 and max(high for _, _, high in placed.values()) == 100
    for name, (low, mean, high) in placed.items():
        difference = evaluation["controls"][name]["versus_router"]["difference"]
        assert low <= mean <= high and (mean > table.zero) == (difference > 0)


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
    assert [(piece.owner, piece.strength) for piece in sample.prompt] == [(None, 0), (0, 3), (None, 0)]
    assert [(piece.owner, piece.strength) for piece in sample.reference] == [(1, 1), (0, 0)]
    assert sample.prompt[1].title == "owl 1.50, base 2.75" and sample.prompt[2].title == "base 0.50"
    assert sample.owners == [("owl", 0.5), ("base", 0.25), ("wren", 0.25)]
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
