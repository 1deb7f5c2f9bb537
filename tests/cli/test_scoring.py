"""Do `evaluate --unseen` and `--lm-eval` score a mixture beside its parts, and refuse what they cannot use?"""

import json

import pytest


@pytest.fixture
def run(finished):
    return finished[0] / "runs" / "small"


def test_a_mixture_is_compared_with_its_base(run, finished, moesaic):
    rows = finished[0] / "birds-test.jsonl"

    def figures(at):
        return json.loads(moesaic("evaluate", run / at, "--unseen", rows, "--json")[1])["files"][str(rows)]

    mixture, base, expert = (figures(at) for at in ("", "base", "experts/sums"))
    assert mixture["base_nats"] == pytest.approx(base["nats"]) == expert["base_nats"]
    apart = mixture["difference"]
    assert apart["mean"] == pytest.approx(mixture["nats"] - base["nats"], abs=1e-6)
    assert apart["low"] <= apart["mean"] <= apart["high"]
    assert sum(mixture["chosen"].values()) == pytest.approx(1) and expert["chosen"] == {"sums": 1.0}
    said = moesaic("evaluate", run, "--unseen", rows)[1]
    assert f"nats per token  {mixture['nats']:.3f}" in said and f"its base        {mixture['base_nats']:.3f}" in said


@pytest.mark.parametrize("option", [("--limit", "3"), ("--json",), ("--base", "x")])
def test_options_of_unseen_files_mean_nothing_without_any(moesaic, option):
    code, _, err = moesaic("evaluate", "demo", *option)
    assert code == 2 and option[0] in err and "--unseen" in err


def test_tasks_of_the_harness_are_a_table_of_all_contenders(run, moesaic, monkeypatch):
    metrics = {"acc,none": 0.25, "acc_stderr,none": 0.125, "exact_match,strict": 0.5}
    found = {"model": "a mixture", "contenders": {name: {"arc": metrics} for name in ("base", "mixture")}}
    asked = []
    monkeypatch.setattr(
        "moesaic.evaluate.harness.judge_tasks", lambda *some, **named: asked.append((some, named)) or found
    )
    _, said, _ = moesaic("evaluate", run, "--lm-eval", "arc, mmlu", "--limit", "3", "--lm-eval-include", "tasks")
    (place, tasks), named = asked[0]
    assert (place, tasks, named["limit"], str(named["include"])) == (str(run), ["arc", "mmlu"], 3, "tasks")
    assert said.splitlines() == [
        "a mixture",
        "                arc acc  arc exact_match,strict",
        "base     0.2500 ±0.1250                  0.5000",
        "mixture  0.2500 ±0.1250                  0.5000",
    ]
    assert json.loads(moesaic("evaluate", run, "--lm-eval", "arc", "--json")[1]) == found


@pytest.mark.parametrize("options", [("--lm-eval-samples", "x"), ("--unseen", "x", "--lm-eval", "arc")])
def test_options_of_tasks_mean_nothing_without_tasks_and_beside_files(moesaic, options):
    code, _, err = moesaic("evaluate", "demo", *options)
    assert code == 2 and "--lm-eval" in err
