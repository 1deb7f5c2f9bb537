"""Does `evaluate --unseen` score a mixture beside its base, its parts alike, and refuse what it cannot use?"""

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
