"""Property: tables and verdicts in a terminal are read as people read them: every figure by the words beside it."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sentinels import EXPERTS, STAGES, count, labelled, language, nats, seconds, share, signed, size

from moesaic.cli.printing import show_run, show_verified
from moesaic.evaluate.statistics import Scores
from moesaic.evaluate.table import plain, render
from moesaic.evaluate.units import label
from moesaic.evaluate.verdict import judge
from moesaic.evaluate.wording import spoken

Meaning = dict[tuple[str, str, str], str]
KINDS = pytest.mark.parametrize("kind", [language, labelled])


def coloured(evaluation: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=max(width, 400), color_system=None)
    console.print(render(evaluation, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(text: str) -> Meaning:
    """The cells of all tables: (title, row, column) -> text, of a table in several pieces together."""
    found: Meaning = {}
    lines = [line.strip() for line in text.splitlines()]
    for ruler, line in enumerate(lines):
        if not re.fullmatch("[-\N{BOX DRAWINGS LIGHT HORIZONTAL} ]+", line):
            continue
        title = next(one for one in reversed(lines[: ruler - 1]) if one).removesuffix(", continued")
        columns = re.split(r"\s{2,}", lines[ruler - 1])
        for row in lines[ruler + 1 :]:
            if not row:
                break
            name, *values = re.split(r"\s{2,}", row)
            for column, value in zip(columns[1:], values, strict=True):
                assert found.setdefault((title, name, column), value) == value
    return found


def between(written: Callable[[float], str], interval: list[float]) -> str:
    low, high = interval
    return f"[{written(low)}, {written(high)}]"


def contenders(e: dict[str, Any], beside: bool) -> Meaning:
    """The cells of all contenders; `beside`: the columns of domains are wanted beside the others."""
    key, scores, found = e["measure"], e["measure"] == "score", {}
    unit = "Mean score" if scores else "Nats per token"
    title, apart = f"{unit}, from the best to the worst", f"{unit} by domain"
    speeds = e["timing"].get("tokens_per_second", {})
    for name, one in e["controls"].items():
        row, versus = "mixture <--" if name == "router" else name, one["versus_router"]
        for domain, value in one[key].items():
            found[apart if domain in EXPERTS and not beside else title, row, domain] = nats(value)
        found[title, row, "active"] = size(one["cost"]["bytes"])
        if speeds:
            found[title, row, "tokens/s"] = count(speeds[name]) if name in speeds else "-"
            found[title, row, "domain mean"] = nats(one["over_domains"])
        difference = f"{signed(versus['difference'])} {between(signed, versus['interval'])}" if versus else "-"
        found[title, row, "mixture better by"] = difference
        if scores:
            found[title, row, "accuracy"] = nats(one["accuracy"]["value"])
    return found


def routers(e: dict[str, Any]) -> Meaning:
    found = {}
    for one in e["router"]["tried"]:
        read = {word: one[word] for word in ("feature", "selection", "loss", "examples")}
        read |= {"val F1": nats(one["validation_macro_f1"]), "accuracy": nats(one["accuracy"])}
        read |= {"macro F1": nats(one["macro_f1"]), "evenness": nats(one["utilisation_evenness"])}
        read[e["measure"]] = nats(one[e["measure"]])
        found |= {("Routers tried", one["kind"], column): text for column, text in read.items()}
    return found


def written(e: dict[str, Any]) -> Meaning:
    return {
        (f"Written after {scores['base']['rows']:.0f} prompts of {domain}", label(name), metric): nats(one[metric])
        for domain, scores in e.get("written", {}).items()
        for name, one in scores.items()
        for metric in ("exact_match", "rouge_l")
    }


def beside(e: dict[str, Any]) -> Meaning:
    """Text of no domain, and prompts in other forms."""
    found = {}
    for kind, one in {"all": e["router"]["outside"], **e["router"]["outside"]["kinds"]}.items():
        read = {"rows": count(one["rows"]), "left to the base": f"{one['abstained']:.1%}", "AUROC": nats(one["auroc"])}
        found |= {("Text of no domain", kind, column): text for column, text in read.items()}
    for form, one in e["router"]["forms"].items():
        read = {"rows": count(one["rows"]), "accuracy": f"{one['accuracy']:.1%}"}
        read["by the form alone"] = f"{one['by_form_alone']:.1%}"
        found |= {("Router by form of the prompt", form, column): text for column, text in read.items()}
    return found


def note(e: dict[str, Any]) -> list[str]:
    """What stands below the contenders."""
    scores, oracle = e["measure"] == "score", e["controls"]["oracle"]
    said = [
        f"all: the mean over all {'tasks' if scores else 'tokens'}, which decides",
        "mixture better by: negative where the contender is better",
        f"in brackets the 90% interval over test rows, one training run, seed {e['intervals']['seed']}",
        f"regret, mixture minus oracle: {nats(e['regret']['value'])} {between(nats, e['regret']['interval'])}",
        "the best of the base and the experts alone, chosen on validation rows: expert:owl",
        f"gap closed, of the way from there to the oracle: {share(e['gap_closed']['value'])} "
        f"{between(share, e['gap_closed']['interval'])}",
    ]
    if scores:
        right, product = e["router"]["accuracy"], e["router"]["accuracy_x_score"]
        product_said = f"score of the oracle {nats(oracle['score']['all'])} = {nats(product)}"
        said += ["accuracy: of all rows of all tasks", f"routing accuracy {nats(right)} x {product_said}"]
    return said


@KINDS
@pytest.mark.parametrize("shown", [plain, coloured])
@pytest.mark.parametrize("width", [72, 300])
def test_every_cell_is_the_figure_of_its_row_and_its_column(kind, shown, width):
    evaluation = kind()
    text = shown(evaluation, width)
    rows = contenders(evaluation, beside=width == 300)
    assert cells(text) == rows | routers(evaluation) | beside(evaluation) | written(evaluation)
    read = [cell for cell in rows.values() if cell != "-"]
    assert len(set(read)) == len(read)
    opening, verdict = text.split("\n\n")[0], evaluation["verdict"]
    assert opening.split() == " ".join([spoken(evaluation), *(f"- {one}" for one in verdict["reasons"])]).split()
    read = " ".join(text.split())
    for said in note(evaluation):
        assert said in read


@KINDS
def test_a_run_tells_its_times_speeds_and_samples_by_their_names(kind, capsys):
    evaluation = kind()
    evaluation["samples"][0]["cut"] = True
    show_run(evaluation, Path("runs/birds"))
    text = capsys.readouterr().out
    assert plain(evaluation, 100) in text
    times = evaluation["timing"]["stages"]
    lines = text[text.index("\nTime\n") :].splitlines()[2 : 3 + len(STAGES)]
    all_of_them = seconds(sum(times.values()))
    read = {name: " ".join(rest) for name, *rest in map(str.split, lines)}
    assert read == {name: f"{seconds(times[name])} s" for name in STAGES} | {"all": f"{all_of_them} s"}
    if speeds := evaluation["timing"].get("tokens_per_second"):
        said = ", ".join(f"{label(name)} {speed:.0f}" for name, speed in speeds.items())
        assert f"tokens per second: {said}\n" in text
    for one in evaluation["samples"]:
        heard = sorted(one["weights"].items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {100 * weight:.0f}%" for name, weight in heard)
        prompt = f"\N{HORIZONTAL ELLIPSIS}{one['prompt']}" if one.get("cut") else one["prompt"]
        assert f"{one['domain']}, routed to {one['chosen']} ({shares})\n> {prompt}\n" in text
        assert f"\n{one['chosen']}:\n  {one['text']}\n" in text


def test_verified_experts_stand_beside_their_own_figures(capsys):
    experts = [
        {"name": name, "validation_nats": 2.125 + place, "base": 3.25 + place, "gain": 1.0625 + place}
        for place, name in enumerate(EXPERTS)
    ]
    show_verified(experts)
    heading, *rows = capsys.readouterr().out.splitlines()[: 1 + len(EXPERTS)]
    assert heading.split() == ["expert", "validation", "base", "gain"]
    for one, row in zip(experts, rows, strict=True):
        assert row.split() == [one["name"], nats(one["validation_nats"]), nats(one["base"]), signed(one["gain"])]


# --------------------------------------------------------------------------------------------------------- verdicts

CALLED = {
    "the base alone": "base",
    "the merged average": "average",
    "the expert wren alone": "expert:wren",
    "the expert owl alone": "expert:owl",
    "the joint expert": "joint",
    "the wide joint expert": "joint_wide",
    "the mixture": "router",
}
INTERVAL = r"95% interval (?P<low>-?[\d.]+) to (?P<high>-?[\d.]+), one training run, seed 0"
CLEAR = rf", better than (?P<other>.+?) by (?P<by>[\d.]+) \({INTERVAL}\); (?P<size>[\d.]+ MB) active"
TIED = (
    r", (?:equally good as|not clearly different from) (?P<other>.+?) "
    rf"\((?P<by>[\d.]+) (?P<word>\w+), {INTERVAL}\): (?P<size>[\d.]+ MB) instead of (?P<more>[\d.]+ MB) active"
)
START, END = r"Use (?P<use>[^:]+): (?P<value>[\d.]+) nats per token", r"; (?P<speed>[\d,]+) tokens/s \((.+?) [\d,]+\)\."


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("other", [name for name in CALLED.values() if name != "router"])
@pytest.mark.parametrize("mixture_first", [True, False])
def test_the_sentence_of_a_verdict_names_whom_its_figures_are_of(mixture_first, other, tied):
    """The mixture and another contender are the best two, and tied or not; means are those of a naive loop."""
    random = np.random.default_rng(1)
    best, second = ("router", other) if mixture_first else (other, "router")
    tokens, noise = random.integers(5, 20, 36).astype(float), 0.1 if tied else 0.01
    levels = {name: 3.0 + place / 8 for place, name in enumerate(CALLED.values())} | {best: 2.0, second: 2.015}
    per_row = {name: (level + random.normal(0, noise, 36)) * tokens for name, level in levels.items()}
    domains = [EXPERTS[row % 2] for row in range(36)]
    scores = {name: Scores(one, tokens, domains, [str(row) for row in range(36)]) for name, one in per_row.items()}
    costs = {name: {"bytes": 10**7 + 10**6 * place} for place, name in enumerate(CALLED.values())}
    speeds = {name: 1000.0 + place for place, name in enumerate(levels)}
    means = {name: sum(one) / sum(tokens) for name, one in per_row.items()}
    best, second = sorted((best, second), key=lambda name: means[name])

    found = judge(scores, costs=costs, resamples=200)
    said = re.fullmatch(
        START + (TIED if tied else CLEAR) + END, spoken(found | {"timing": {"tokens_per_second": speeds}})
    )
    assert said is not None
    use, against = CALLED[said["use"]], CALLED[said["other"]]
    assert {use, against} == {best, second} and use == (other if tied else best)  # the mixture has the most bytes
    assert said["value"] == nats(means[use])
    assert said["by"] == nats(abs(means[use] - means[against]))
    low, high = found["controls"][other]["versus_router"]["interval"]
    worse = means[use] > means[against]
    ends = (low, high) if (use == other) == worse else (-high, -low)
    assert (said["low"], said["high"]) == tuple(map(nats, ends))
    assert said["size"] == size(costs[use]["bytes"]) and said["speed"] == count(speeds[use])
    if tied:
        assert said["word"] == ("worse" if worse else "better") and said["more"] == size(costs["router"]["bytes"])
