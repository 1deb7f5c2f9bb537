"""The tables: the verdict first, rows in line, within the width, and the same cells in both renderings."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from moesaic.evaluate.statistics import Scores
from moesaic.evaluate.table import plain, render
from moesaic.evaluate.verdict import judge


def evaluation(*domains: str, unseen: bool = True, router: bool = True, tried: bool = True) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    names = [name for name in [*domains, *(["unseen"] if unseen else [])] for _ in range(12)]
    tokens = generator.integers(5, 30, len(names))
    contenders = ["base", *(f"expert:{name}" for name in domains), "joint", "router"]
    scores = {
        name: Scores(
            generator.normal(3, 0.2, len(names)) * tokens, tokens, names, [str(row) for row in range(len(names))]
        )
        for name in contenders
        if router or name != "router"
    }
    routers = [
        {"kind": "mlp", "feature": "hidden_mean", "selection": "top_1", "validation_macro_f1": 0.97, "nats": 3.0},
        {
            "kind": "keyword",
            "feature": "text",
            "selection": "top_1",
            "examples": "600",
            "accuracy": 0.7,
            "macro_f1": 0.69,
        },
    ]
    return judge(scores, resamples=50) | ({"router": {"tried": routers}} if tried else {})


def printed(result: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(result, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


FIVE = ("code", "dialogue", "knowledge", "math", "stories")


def test_the_verdict_is_the_first_line():
    result = evaluation("math", "code")
    sentence = result["verdict"]["sentence"]
    for text in (plain(result, 300), printed(result, 300)):
        assert text.splitlines()[0].rstrip() == sentence


def test_rows_go_from_best_to_worst_with_the_mixture_marked():
    result = evaluation("math", "code")
    lines = plain(result).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("contender"))
    body = lines[start + 2 : lines.index("", start)]
    values = [float(line.replace("<--", "").split()[1]) for line in body]
    assert values == sorted(values)
    assert len(body) == len(result["controls"])
    assert [line.split()[0] for line in body if "<--" in line] == ["mixture"]


def test_numbers_have_three_decimals_and_unknown_ones_a_dash():
    result = evaluation("math", "code")
    text = plain(result)
    assert f"{result['controls']['base']['nats']['math']:.3f}" in text
    versus = result["controls"]["joint"]["versus_router"]
    low, high = versus["interval"]
    assert f"{versus['difference']:+.3f} [{low:+.3f}, {high:+.3f}]" in text
    keyword = next(line for line in text.splitlines() if line.startswith("keyword"))
    assert keyword.split() == ["keyword", "text", "top_1", "-", "600", "-", "0.700", "0.690", "-", "-"]
    note = " ".join(text.split())
    assert f"regret, mixture minus oracle: {result['regret']['value']:.3f}" in note
    assert f"gap closed, of the way from there to the oracle: {result['gap_closed']['value']:.1%}" in note


def test_columns_stand_in_line():
    lines = plain(evaluation("math", "code")).splitlines()
    rule = next(number for number, line in enumerate(lines) if set(line) == {"-"})
    ends = {len(line) for line in [lines[rule - 1], *lines[rule : lines.index("", rule)]]}
    assert ends == {len(lines[rule])}


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("domains", [FIVE[:2], FIVE, tuple(f"{name}{n}" for name in FIVE for n in range(4))])
def test_nothing_is_wider_than_the_page_and_nothing_is_lost(domains: tuple[str, ...], width: int):
    result = evaluation(*domains)
    flat, coloured = plain(result, width), printed(result, width)
    assert max(map(len, flat.splitlines())) <= width
    headings = [word for line in flat.splitlines() if line.startswith("contender") for word in line.split()]
    assert [word for word in headings if word not in ("contender", "mixture", "better", "by")] == [
        *("all", "domain", "mean", "unseen"),
        *domains_in(result),
    ]
    assert [line.split() for line in cells(coloured)] == [line.split() for line in cells(flat)]


def domains_in(result: dict[str, Any]) -> list[str]:
    return [name for name in result["controls"]["base"]["nats"] if name not in ("all", "unseen")]


def cells(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and set(line.strip()) - {"-", "─"}]


def test_domains_that_do_not_fit_beside_the_other_columns_have_a_table_of_their_own():
    titles = [line for line in plain(evaluation(*FIVE)).splitlines() if line.startswith("Nats per token")]
    assert titles == ["Nats per token, from the best to the worst", "Nats per token by domain"]
    assert "by domain" not in plain(evaluation(*FIVE[:2]))
    pieces = plain(evaluation(*FIVE), 56)
    continued = [line for line in pieces.splitlines() if ", continued" in line]
    assert continued[:2] == [f"{title}, continued" for title in titles]


def test_bytes_and_speeds_stand_beside_the_nats_where_they_are_known():
    result = evaluation("math")
    result["controls"]["joint"]["cost"] = {"bytes": 1_500_000}
    result["timing"] = {"tokens_per_second": {"joint": 1234.5}}
    text = plain(result, 200)
    (joint, base) = (
        next(line.split() for line in text.splitlines() if line.startswith(name)) for name in ("joint", "base")
    )
    assert joint[-4:-1] == ["1.5", "MB", "1,234"] and base[-3:-1] == ["-", "-"]


def test_without_a_router_unseen_rows_or_tried_routers_their_columns_go():
    text = plain(evaluation("math", unseen=False, router=False, tried=False))
    assert "mixture better by" not in text and "<--" not in text
    assert not any("unseen" in line for line in text.splitlines() if line.startswith("contender"))
    assert "Routers tried" not in text


def test_what_was_written_is_a_table_for_each_domain_with_the_mixture_marked():
    scores = {"rows": 40.0, "rouge": 0.25, "truth": 0.5}
    result = evaluation("math") | {"written": {"math": {"base": scores, "router": {**scores, "truth": 0.75}}}}
    lines = plain(result, 100).splitlines()
    at = lines.index("Written after 40 prompts of math")
    assert [line.split() for line in lines[at + 4 : at + 6]] == [
        ["base", "0.250", "0.500"],
        ["mixture", "0.250", "0.750"],
    ]


def test_names_are_text_not_markup():
    result = evaluation("math")
    result["router"]["tried"][0]["feature"] = "[red]hidden@2[/red]"
    assert "[red]hidden@2[/red]" in printed(result, 120)


def test_routers_are_told_apart_by_what_they_learned_from_and_how_evenly_they_use_the_experts():
    result = evaluation("math")
    result["router"]["tried"][0] |= {"loss": "expert + 0.5 balance", "utilisation_evenness": 0.69}
    rows = [line for line in plain(result, 140).splitlines() if "hidden_mean" in line]
    assert len(rows) == 1 and "expert + 0.5 balance" in rows[0] and rows[0].split()[-2:] == ["0.690", "3.000"]
