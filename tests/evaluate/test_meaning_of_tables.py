"""Property: tables and verdicts in a terminal are read as people read them: every figure by the words beside it."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sentinels import DOMAINS, EXPERTS, STAGES, count, labelled, language, nats, seconds, share, signed

from moesaic.cli.printing import show_run, show_verified
from moesaic.evaluate.grades import Grades
from moesaic.evaluate.statistics import Scores
from moesaic.evaluate.table import plain, render
from moesaic.evaluate.units import label
from moesaic.evaluate.verdict import judge

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


def contenders(e: dict[str, Any]) -> Meaning:
    key, scores, found = e["measure"], e["measure"] == "score", {}
    title = f"{'Mean score' if scores else 'Nats per token'}, from the worst to the best"
    for name, one in e["controls"].items():
        row, versus = "mixture <--" if name == "router" else name, one["versus_router"]
        found |= {(title, row, domain): nats(value) for domain, value in one[key].items()}
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


def note(e: dict[str, Any]) -> list[str]:
    """What stands below the contenders."""
    scores, oracle = e["measure"] == "score", e["controls"]["oracle"]
    said = [
        "mixture better by: negative where the contender is better, with its 90% interval",
        f"regret {nats(e['regret']['value'])} {between(nats, e['regret']['interval'])}",
        f"gap closed {share(e['gap_closed']['value'])} {between(share, e['gap_closed']['interval'])}",
        "best part expert:owl, chosen on validation",
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
    expected = contenders(evaluation) | routers(evaluation) | written(evaluation)
    assert cells(text) == expected
    assert len(set(contenders(evaluation).values())) == len(contenders(evaluation))
    opening, verdict = text.split("\n\n")[0], evaluation["verdict"]
    assert opening.split() == " ".join([verdict["sentence"], *(f"- {one}" for one in verdict["reasons"])]).split()
    read = " ".join(text.split())
    for said in note(evaluation):
        assert said in read


@KINDS
def test_a_run_tells_its_times_speeds_and_samples_by_their_names(kind, capsys):
    evaluation = kind()
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
        assert f"{one['domain']}, routed to {one['chosen']} ({shares})\n> {one['prompt']}\n  {one['text']}\n" in text


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
SENTENCE = re.compile(
    r"Use (?P<use>[^:]+): (?:a mean score of )?(?P<value>[\d.]+)(?: nats per token)?, "
    r"(?:better than (?P<beaten>.+?) by|(?P<word>\w+) than (?P<close>.+?) and only (?P<share>[\d.]+%) worse, by) "
    r"(?P<by>[\d.]+) \(95% interval (?P<low>-?[\d.]+) to (?P<high>-?[\d.]+)\)(?:, which is no clear difference)?"
    r"; (?P<size>[\d.]+ MB) active; (?P<speed>[\d,]+) tokens/s\."
)


def judged(best: str, second: str, bytes_of: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """A verdict in which `best` and then `second` do best; the mean nats of each contender by a naive loop."""
    random, domains = np.random.default_rng(1), [name for name in DOMAINS for _ in range(12)]
    tokens = random.integers(5, 20, len(domains)).astype(float)
    levels = {name: 3.0 + place / 8 for place, name in enumerate(CALLED.values())} | {best: 2.0, second: 2.015}
    per_row = {name: (level + random.normal(0, 0.01, len(domains))) * tokens for name, level in levels.items()}
    scores = {name: Scores(one, tokens, domains, [str(row) for row in range(36)]) for name, one in per_row.items()}
    costs = {
        name: {"parameters": 7, "bytes": 10**7 + 10**6 * bytes_of.index(name), "tokens_per_second": 1000.0 + place}
        for place, name in enumerate(levels)
    }
    trained = [row for row, name in enumerate(domains) if name != "unseen"]
    means = {name: sum(one[trained]) / sum(tokens[trained]) for name, one in per_row.items()}
    return judge(scores, costs=costs, resamples=200), means


@pytest.mark.parametrize("mixture_first", [True, False])
@pytest.mark.parametrize("other", [name for name in CALLED.values() if name != "router"])
def test_the_sentence_of_a_verdict_names_whom_its_figures_are_of(mixture_first, other):
    best, second = ("router", other) if mixture_first else (other, "router")
    by_size = [other, *(name for name in CALLED.values() if name != other)]  # the mixture's bytes are the most
    found, means = judged(best, second, by_size)
    said = SENTENCE.fullmatch(found["verdict"]["sentence"])
    assert said is not None
    use, runner_up = CALLED[said["use"]], CALLED[said["beaten"] or said["close"]]
    assert (use, runner_up) == (other, "router") == (found["verdict"]["use"], found["verdict"]["runner_up"]["name"])
    assert said["value"] == nats(means[use])
    assert said["by"] == nats(abs(means[use] - means[runner_up]))
    assert (said["word"] == "cheaper", said["beaten"] is None) == (mixture_first, mixture_first)
    if mixture_first:
        assert said["share"] == share((means[use] - means[runner_up]) / means[runner_up])
    low, high = found["controls"][other]["versus_router"]["interval"]
    ends = (low, high) if mixture_first else (-high, -low)
    assert (said["low"], said["high"]) == tuple(map(nats, ends))
    cost = found["controls"][use]["cost"]
    assert said["size"] == f"{cost['bytes'] / 10**6:.1f} MB" and said["speed"] == count(cost["tokens_per_second"])
    close, sizes = found["verdict"]["reasons"][:2]
    assert close == f"Within 1% of the best, {label(best)} at {nats(means[best])}: {label(second)}."
    listed = {name: f"{found['controls'][name]['cost']['bytes'] / 10**6:.1f} MB" for name in (other, "router")}
    assert sizes == f"By active bytes: {', '.join(f'{label(name)} {one}' for name, one in listed.items())}."


def test_the_reasons_of_a_verdict_name_whom_their_figures_are_of():
    found, means = judged("joint", "expert:owl", [*CALLED.values()])
    controls, reasons = found["controls"], found["verdict"]["reasons"]
    assert found["verdict"]["use"] == "expert:owl"  # has fewer bytes than the joint expert
    off = nats(means["router"] - means["expert:owl"])
    low, high = controls["expert:owl"]["versus_router"]["interval"]
    assert f"The mixture is {off} (95% interval {nats(-high)} to {nats(-low)}) worse than expert:owl." in reasons
    base, used = (controls[name]["nats"]["unseen"] for name in ("base", "expert:owl"))
    (said,) = (reason for reason in reasons if reason.startswith("On domains without training rows, "))
    start = f"On domains without training rows, the expert owl alone is {nats(base - used)} (95% interval "
    assert said.startswith(start)
    assert said.endswith(" better than the base.")


def test_the_sentence_about_labels_says_scores():
    truth = {name: np.arange(20) % 2 for name in EXPERTS}
    wrong = {"expert:owl": 9, "expert:wren": 8, "joint": 6, "router": 1}

    def grades(wrong: int) -> Grades:
        said = {name: np.where(np.arange(20) < wrong, 1 - one, one) for name, one in truth.items()}
        metrics = dict.fromkeys(EXPERTS, ("accuracy",))
        nats_of_rows, groups = np.full(40, float(wrong)), [str(row) for row in range(40)]
        return Grades.of(nats_of_rows, truth, said, dict.fromkeys(EXPERTS, 2), metrics, groups)

    costs = {
        name: {"parameters": 7, "bytes": 10**7 + 10**6 * one, "tokens_per_second": 5.0 + one}
        for name, one in wrong.items()
    }
    found = judge({name: grades(one) for name, one in wrong.items()}, costs=costs, resamples=200)
    said = SENTENCE.fullmatch(found["verdict"]["sentence"])
    assert said is not None and (said["use"], said["beaten"]) == ("the mixture", "the joint expert")
    assert (said["value"], said["by"], said["size"], said["speed"]) == ("0.950", "0.250", "11.0 MB", "6")
    assert (said["low"], said["high"]) == tuple(map(nats, found["controls"]["joint"]["versus_router"]["interval"]))
