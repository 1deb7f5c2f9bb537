"""Property: the benchmark of five domains: its steps, merges, exact answers and page, and the texts that it reads."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import five_domains
from benchmarks.adapter_merges import change, merged, task_arithmetic, ties
from benchmarks.five_domains import NEXT, PUBLISHED, letter_in, number_in, overrides
from benchmarks.five_domains_report import report
from benchmarks.page import RECIPES, Options
from moesaic.adapters import LoRA, merge
from moesaic.data.rows import examples_of
from moesaic.recipe import read
from moesaic.testing import tiny_decoder, toy_expert

DOMAINS = ["math", "code", "knowledge", "conversation", "reasoning"]
ROOT = Path(__file__).parents[1]


# --- recipes and steps


def test_over_gemma_only_the_base_and_the_name_differ() -> None:
    here, there = (read(RECIPES / f"five-domains-{model}.yaml").model_dump() for model in ("smollm2", "gemma"))
    assert there["base"]["path"].startswith("google/gemma-3-270m")
    assert {key for key in here if here[key] != there[key]} == {"name", "base"}


def test_the_published_setting_is_the_one_of_the_recipe() -> None:
    recipe = read(RECIPES / "five-domains-smollm2.yaml")
    assert recipe.train.steps * recipe.train.batch == 500 and [*recipe.experts] == DOMAINS
    assert {expert.rank for expert in recipe.experts.values()} == {4}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("step", [PUBLISHED, *NEXT])
def test_every_step_is_a_recipe_that_reads_and_changes_what_it_is_called(step: str, quick: bool) -> None:
    options = Options(Path("runs"), Path("shared"), quick)
    recipe = read(five_domains.RECIPE, overrides(step, options))
    assert recipe.name == f"five-domains-smollm2-{step}" and (recipe.train.steps == 2) == quick
    ranks = {(expert.rank, expert.alpha) for expert in recipe.experts.values()}
    assert ranks == {"rank-8": {(8, 16)}, "rank-16": {(16, 32)}}.get(step, {(4, 8)})
    limits = [source.limit for source in recipe.experts["math"].data.train]
    assert limits == ([2223] if step == "rows-2000" else [556])
    if not quick:
        assert recipe.train.steps == {"epochs-3": 375, "rows-2000": 500}.get(step, 125)
    assert ("joint" in recipe.evaluate.controls or recipe.evaluate.controls == "all") == (step == PUBLISHED)


# --- merges


def experts() -> list[LoRA]:
    plain = tiny_decoder()
    return [toy_expert(plain, seed, rank=2) for seed in range(3)]


def test_task_arithmetic_adds_the_scaled_changes_of_all_experts() -> None:
    found, expected = merged(tiny_decoder(), experts(), "task arithmetic", 0.3), tiny_decoder()
    merge(expected, experts(), [0.3] * 3)
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name])
    some, like = torch.arange(6.0).reshape(3, 1, 2), torch.zeros(4, 5)
    assert task_arithmetic(some).equal(torch.tensor([[6.0, 9.0]]))
    assert change(experts()[0], "layers.0.nothing", like).equal(like)


def test_ties_trims_elects_signs_and_averages_what_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.adapter_merges.KEPT", 0.5)
    changes = torch.tensor([[[4.0, -3.0, 0.5, 0.1]], [[2.0, 5.0, 1.0, -0.2]], [[-1.0, -4.0, 0.3, -9.0]]])
    # kept: 4 -3 . . | 2 5 . . | . -4 . -9; sums 6 -2 0 -9; agreeing: 4 and 2, -3 and -4, none, -9
    assert ties(changes).tolist() == [[3.0, -3.5, 0.0, -9.0]]


# --- exact answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Working 50 minutes, she earned 0.2 x 50 = $10.\n#### 10", "10"),
        ("#### 1,250", "1250"),
        ("12 apples and 7 pears make 19.", "19"),
        ("#### -3.50 left", "-3.5"),
        ("none", None),
        ("#### ", None),
    ],
)
def test_the_number_is_the_last_one_behind_the_mark(text: str, number: str | None) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B. food", "B"),
        ("The correct answer is C.", "C"),
        ("(D) water", "D"),
        ("A\n", "A"),
        ("A bacterium lives in B: water", "B"),
        ("Answer", None),
        ("ABC.", None),
    ],
)
def test_the_letter_is_one_that_is_given_as_a_choice(text: str, letter: str | None) -> None:
    assert letter_in(text) == letter


# --- the page


def by_row(nats: float) -> dict[str, Any]:
    domains = [domain for domain in DOMAINS for _ in range(4)]
    return {"nats": [nats] * 20, "tokens": [2.0] * 20, "domains": domains, "groups": [*map(str, range(20))]}


def evaluation() -> dict[str, Any]:
    def control(nats: float, *interval: float) -> dict[str, Any]:
        versus = {"difference": nats - 1, "interval": [*interval]} if interval else None
        return {"nats": {"all": nats}, "versus_router": versus}

    flat = {
        "kind": "mlp",
        "feature": "hidden_mean",
        "selection": "top_1",
        "accuracy": 0.9,
        "macro_f1": 0.8,
        "nats": 1.0,
    }
    tried = [
        {**flat, "utilisation": dict.fromkeys(DOMAINS, 0.2), "outside": {"abstained": 0.5}},
        {**flat, "kind": "keyword, first match", "feature": "text", "utilisation": {"math": 0.75, "base": 0.25}},
    ]
    return {
        "verdict": {"sentence": "Use the mixture."},
        "controls": {
            "router": control(1.0),
            "base": control(1.5, 0.4, 0.6),
            "average": control(1.1, -0.1, 0.2),
            "expert:math": control(0.9, -0.2, -0.1),
        },
        "domains": DOMAINS,
        "router": {"tried": tried},
        "timing": {"stages": {"base": 60.0, "experts": 60.0}},
    }


def findings(nats: float) -> dict[str, Any]:
    validation = {domain: {"base": 2.0, "validation_nats": 1.5, "gain": 0.5} for domain in DOMAINS}
    rows = {"base": by_row(4), "oracle": by_row(nats), "router": by_row(nats)}
    return {"validation": validation, "rows": rows, "seconds": 60.0}


def test_the_page_says_what_each_step_gains_what_is_unclear_and_what_was_not_run() -> None:
    merges = {"TIES": {"scale": 0.5, "validation": {"0.5": 1.7, "1": 1.9}, **by_row(3)}}
    steps = {PUBLISHED: {**findings(2), "merges": merges}, "rank-8": findings(1)}
    answered = {"gsm8k": {"base": {"right": 1, "rows": 10, "seconds": 3.0}}}
    runs = dict.fromkeys(steps, evaluation())
    text = report(runs, steps, answered, ["rank-16", "rows-2000"]).text
    assert "| math | 1.23 | 2.000 | 1.500 | +0.500 |" in text
    assert "| base | 1.500 | +0.500 [+0.400, +0.600] | yes |" in text
    assert "| average | 1.100 | +0.100 [-0.100, +0.200] | not clear |" in text
    assert "| expert:math | 0.900 | -0.100 [-0.200, -0.100] | no |" in text
    assert "| TIES, scale 0.5 of 0.5: 1.700, 1: 1.900 on validation | 1.500 | +0.500 [+0.500, +0.500] | yes |" in text
    assert "| keyword, first match on text, top_1 | 0.900 | 0.800 | 1.000 | never | 0.750 | 0.000" in text
    assert "| gsm8k | base | 1 of 10 | 0.100 [0.018, 0.404] | 3 |" in text
    gains = " | ".join(["+0.500 [+0.500, +0.500]"] * 6)
    assert f"| rank-8 | {gains} | 3 |" in text
    assert "Not run: rank-16, rows-2000; `python -m benchmarks five-domains-smollm2 --next STEP` runs one." in text


# --- the texts


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2_texts", RECIPES / "smollm2/texts.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_of_the_recipes_is_one_that_the_script_downloads(texts: ModuleType) -> None:
    for recipe in ("smollm2", "five-domains-smollm2", "five-domains-gemma", "five-domains-scratch"):
        assert {*read(RECIPES / f"{recipe}.yaml").sources.values()} <= {*texts.FILES}


def test_questions_become_rows_as_the_recipes_read_them(texts: ModuleType) -> None:
    lines = 'Which floats?,a stone,"a cork, dry",iron,lead,B\nNo key?,a,b,c,d,3\nThree?,gas,liquid,solid,,A\n'
    (row,) = texts.choices(lines)
    assert row["prompt"] == "Which floats?\nA. a stone\nB. a cork, dry\nC. iron\nD. lead\nAnswer:"
    assert row["response"] == "B. a cork, dry" and examples_of(row)[0].response == row["response"]


def test_what_has_no_official_split_is_cut_into_two_that_share_nothing(texts: ModuleType) -> None:
    given = json.dumps([{"instruction": f"Write {n}.", "input": "x", "response": "y"} for n in range(400)])
    train, test = ([*texts.code_instruct(given, split)] for split in ("train", "test"))
    prompts = [{row["prompt"] for row in some} for some in (train, test)]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 400 and 60 < len(test) < 140
    assert train[0]["prompt"].endswith(".\n\nx")
    head = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    table = head + "".join(f"a,b,Why {n}?,because,because; so it is,never;,u\n" for n in range(40))
    row = next(texts.truthfulqa(table, "train"))
    assert row["correct_answers"] == ["because", "so it is"] and row["incorrect_answers"] == ["never"]
