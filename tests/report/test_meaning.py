"""Property: pages read as people read them: every figure by the words beside it, never by the place it names itself.

No two figures of these runs read alike. Beside the words of a page stands, in Python, where their figure comes from.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sentinels import (
    CONTENDERS,
    DOMAINS,
    EXPERTS,
    LABELS,
    LENGTHS,
    SPLITS,
    STAGES,
    Draw,
    count,
    labelled,
    language,
    nats,
    seconds,
    share,
    signed,
    size,
    texts,
)

from moesaic.evaluate.texts import DEFINITIONS
from moesaic.evaluate.units import label
from moesaic.evaluate.wording import spoken
from moesaic.report import compare_reports, write_report

Meaning = dict[Any, str]

PARTS = {"trained": "experts and router"}
"""Counts of parameters that a page calls otherwise than evaluation.json: experts given by path are not trained."""

# ---------------------------------------------------------------------------------------------------------- reading


class Element:
    """An element of a page, with what it holds in its order."""

    def __init__(self, tag: str = "", attributes: dict[str, str | None] | None = None):
        self.tag, self.attributes = tag, attributes or {}
        self.parts: list[Element | str] = []

    def all(self, tag: str, kind: str = "") -> "Iterator[Element]":
        for part in self.parts:
            if isinstance(part, Element):
                if part.tag == tag and (not kind or kind in part.kinds):
                    yield part
                yield from part.all(tag, kind)

    def one(self, tag: str, kind: str = "") -> "Element":
        (found,) = self.all(tag, kind)
        return found

    @property
    def kinds(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    def words(self, without: tuple[str, ...] = ("svg", "style")) -> str:
        """The text as it is read; minus signs, dashes and blanks in their plain spelling."""
        return " ".join(re.sub("[\N{MINUS SIGN}\N{EN DASH}]", "-", self._text(without)).split())

    def _text(self, without: tuple[str, ...]) -> str:
        texts = (part if isinstance(part, str) else part._text(without) for part in self.parts)
        return "" if self.tag in without else "".join(texts)


class Page(HTMLParser):
    """A page as a tree of elements."""

    def __init__(self, at: Path):
        super().__init__()
        self.root = Element()
        self.open = [self.root]
        self.feed(at.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].parts.append(element)
        if tag != "meta":
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)

    def section(self, name: str) -> Element:
        (found,) = (one for one in self.root.all("section") if one.attributes.get("aria-labelledby") == name)
        return found

    def figures(self) -> set[str]:
        """Every figure that the page shows."""
        return {one.words() for one in self.root.all("span", "n")}


def cells(page: Page) -> Meaning:
    """The cells of all tables: (caption, row, column) -> text; the column is empty where a table has no headings."""
    found: Meaning = {}
    for table in page.root.all("table"):
        caption, headings = table.one("caption").words(), headings_of(table)
        for row in table.one("tbody").all("tr"):
            read: Meaning = {}
            columns = headings or [""] * len([*row.all("td")])
            for column, cell in zip(columns, row.all("td"), strict=True):
                key = (caption, row.one("th").words(without=("em",)), column)
                read[key] = read.get(key, "") + cell.words()
            assert not read.keys() & found.keys()
            found |= read
    return found


def headings_of(table: Element) -> list[str]:
    """The headings of a table's columns but the first, one that is two columns wide twice."""
    cells = [cell for head in table.all("thead") for tag in ("td", "th") for cell in head.all(tag)]
    return [cell.words() for cell in cells[1:] for _ in range(int(cell.attributes.get("colspan") or 1))]


def key_of(contender: str) -> str:
    """The key of a contender in evaluation.json."""
    return "router" if contender == "mixture" else contender


def numbers(meaning: Meaning) -> set[str]:
    """Every figure in the texts that are expected, and in the words beside them."""
    texts = [*meaning.values(), *(" ".join(words) for words in meaning if isinstance(words, tuple))]
    return {one.rstrip(".,") for text in texts for one in re.findall(r"[-+]?\d[\d.,]*%?(?: MB| kB)?", text)}


# ---------------------------------------------------------------------------------------------------------- meaning


def between(written: Callable[[float], str], interval: list[float]) -> str:
    low, high = interval
    return f"[{written(low)}, {written(high)}]"


def tiles(e: dict[str, Any]) -> Meaning:
    """The words under each headline -> the headline, and what is said below."""
    mixture = e["controls"]["router"]
    scores = e["measure"] == "score"
    of_scores, of_nats = (
        "score of the oracle minus that of the mixture",
        "nats of the mixture minus those of the oracle",
    )
    regret = f"regret: {of_scores if scores else of_nats}"
    return {
        ("mean score" if scores else "nats per token") + " of the mixture": f"{nats(mixture[e['measure']]['all'])} "
        f"{between(nats, mixture['interval'])}",
        "of the gap closed, from the best of the base and the experts alone to the oracle": ""
        f"{share(e['gap_closed']['value'])} "
        f"{between(share, e['gap_closed']['interval'])}",
        regret: f"{nats(e['regret']['value'])} {between(nats, e['regret']['interval'])}",
        "of prompts routed to their domain\N{RIGHT SINGLE QUOTATION MARK}s expert": f"{share(e['router']['accuracy'])} "
        f"macro F1 {nats(e['router']['macro_f1'])}",
        "of text of no domain left to the base": f"{share(e['router']['outside']['abstained'])} "
        f"AUROC {nats(e['router']['outside']['auroc'])}",
    } | (
        {
            "tokens per second, one row at a time": f"{count(e['timing']['tokens_per_second']['router'])} "
            f"{size(mixture['cost']['bytes'])} active"
        }
        if "tokens_per_second" in e["timing"]
        else {}
    )


def contenders(e: dict[str, Any]) -> Meaning:
    key, found = e["measure"], {}
    speeds = e["timing"].get("tokens_per_second", {})
    for name, one in e["controls"].items():
        cell = partial(lambda row, column: ("Contenders, from the best to the worst", label(row), column), name)
        versus = one["versus_router"]
        found |= {cell(domain): nats(one[key][domain]) for domain in one[key] if domain != "all"}
        found |= {
            cell("all"): nats(one[key]["all"]) + between(nats, one["interval"]),
            cell("mixture better by"): signed(versus["difference"]) + between(signed, versus["interval"])
            if versus
            else "-",
            cell("parameters"): count(one["cost"]["parameters"]),
            cell("active bytes"): size(one["cost"]["bytes"]),
        }
        found |= {cell("tokens/s"): count(speeds[name]) if name in speeds else "-"} if speeds else {}
        found |= {cell("domain mean"): nats(one["over_domains"])} if "over_domains" in one else {}
    return found


def experts_by_domain(e: dict[str, Any]) -> Meaning:
    key, controls = e["measure"], e["controls"]
    what = "Score of each expert minus that" if key == "score" else "Nats of each expert minus those"
    caption = f"{what} of the base, by domain"
    best = max if key == "score" else min
    found = {}
    for domain in (name for name in controls["base"][key] if name != "all"):
        base = controls["base"][key][domain]
        found[caption, f"base, {key}", domain] = nats(base)
        off = {f"expert:{name}": controls[f"expert:{name}"][key][domain] - base for name in EXPERTS}
        framed = best(off, key=lambda name: off[name])
        for name, value in (off | {"router": controls["router"][key][domain] - base}).items():
            found[caption, label(name), domain] = signed(value) + (" best" if name == framed else "")
    return found


def routers(e: dict[str, Any]) -> Meaning:
    own, key = e["router"], e["measure"]
    found: Meaning = {}
    for i, row in enumerate(EXPERTS):
        for j, column in enumerate((*EXPERTS, "base")):
            found["Confusion matrix: domains by chosen expert", row, column] = count(own["confusion"]["counts"][i][j])
    found |= {("Utilisation", name, ""): share(value) for name, value in own["utilisation"].items()}
    for one in own["reliability"]:
        cell = partial(lambda *a: a, "Reliability by bin of confidence", f"{one['from']}-{one['below']}")
        found |= {cell("rows"): count(one["rows"]), cell("mean confidence"): nats(one["confidence"])}
        found[cell("accuracy")] = nats(one["accuracy"])
        found[cell("95% interval")] = between(nats, one["interval"])
    for kind, one in own["outside"]["kinds"].items():
        cell = partial(lambda *a: a, "Text of no domain", kind)
        found |= {cell("rows"): count(one["rows"]), cell("left to the base"): share(one["abstained"])}
        found[cell("AUROC")] = nats(one["auroc"])
    for form, one in own["forms"].items():
        cell = partial(lambda *a: a, "Accuracy by form of the prompt", form)
        found |= {cell("rows"): count(one["rows"]), cell("accuracy"): share(one["accuracy"])}
        found[cell("by the form alone")] = share(one["by_form_alone"])
    for words, one in zip(("0-7", "8-15", "16-31", "32-63", "64-127", "128+"), own["by_length"], strict=True):
        cell = partial(lambda *a: a, "Accuracy by length of the prompt", words)
        found |= {cell("rows"): count(one["rows"]), cell("accuracy"): share(one["accuracy"])}
    for one in own["tried"]:
        cell = partial(
            lambda *a: a, "Routers tried, the mixture\N{RIGHT SINGLE QUOTATION MARK}s own first", one["kind"]
        )
        found |= {cell(word): one[word] for word in ("feature", "selection", "loss", "examples")}
        found |= {
            cell("validation F1"): nats(one["validation_macro_f1"]),
            cell("test accuracy"): share(one["accuracy"]),
            cell("test F1"): nats(one["macro_f1"]),
            cell(f"accuracy on {count(own['matched']['tokens'])} tokens"): share(one["matched"]["accuracy"]),
            cell("outside, left to the base"): share(one["outside"]["abstained"]),
            cell("AUROC"): nats(one["outside"]["auroc"]),
            cell("accuracy, worst form"): share(one["worst_form"]["accuracy"]),
            cell(key): nats(one[key]),
        }
        cell = partial(lambda *a: a, "Share of test rows that each router sends to each expert", one["kind"])
        found |= {cell(name): share(part) for name, part in one["utilisation"].items()}
        found |= {cell("evenness"): share(one["utilisation_evenness"]), cell("feature"): one["feature"]}
    return found


def written(e: dict[str, Any]) -> Meaning:
    return {
        (f"{domain}, {count(scores['base']['rows'])} prompts", label(name), metric.replace("_", " ")): nats(one[metric])
        for domain, scores in e.get("written", {}).items()
        for name, one in scores.items()
        for metric in ("exact_match", "rouge_l")
    }


def costs(e: dict[str, Any]) -> Meaning:
    found = {("Parameters", PARTS.get(name, name), ""): count(value) for name, value in e["parameters"].items()}
    found["Parameters", "active bytes", ""] = size(e["controls"]["router"]["cost"]["bytes"])
    found |= {("Time of each stage", name, ""): seconds(e["timing"]["stages"][name]) for name in STAGES}
    speeds = e["timing"].get("tokens_per_second", {})
    return found | {("Tokens per second", label(name), ""): count(value) for name, value in speeds.items()}


def data(e: dict[str, Any], d: dict[str, Any]) -> Meaning:
    found = {}
    for name in EXPERTS:
        cell = partial(lambda *a: a, "Rows of each domain by split, and rows in the evaluation", name)
        found |= {cell(split): count(d["rows"][f"{name}/{split}"]) for split in ("train", "validation", "test")}
        found |= {
            cell("evaluated"): count(e["rows"][name]),
            cell("groups"): count(e["groups"][name]),
            cell("truncated"): count(e["truncated"][name]),
            cell("tokens cut, train"): share(e["cut"][name]["train"]),
            cell("tokens cut, test"): share(e["cut"][name]["test"]),
            cell("dropped"): ", ".join(f"{why} {count(rows)}" for why, rows in d["dropped"][name].items()),
        }
    for file, one in d["files"].items():
        cell = partial(lambda *a: a, "Rows of each file", file)
        found |= {cell("read"): count(one["read"]), cell("used"): count(one["used"])}
        found[cell("skipped")] = f"not JSON {count(one['skipped']['not JSON'])}"
        found[cell("ignored keys")] = ", ".join(f"{key} {count(rows)}" for key, rows in one["ignored"].items())
    for name, facts in d["facts"].items():
        cell = partial(lambda *a: a, "Rows that change what figures mean", name)
        found[cell("texts with two labels")] = count(facts["texts_with_two_labels"])
        found[cell("test prompts in train, with other answers")] = count(facts["prompts_in_train_and_test"])
        found |= {
            (f"Rows of each label of {name}", one, split): count(facts["labels"][split][one])
            for split in SPLITS
            for one in LABELS[name]
        }
    return found


def sentences(e: dict[str, Any], d: dict[str, Any]) -> Meaning:
    """Figures in running text: a name for the passage -> what is read there."""
    own, rows, outside = e["router"], e["rows"], e["router"]["outside"]
    unseen = e["controls"]["base"].get("versus_router_unseen")
    judged_on = ", ".join(f"{name} {count(rows[name])}" for name in DOMAINS)
    twice = d["duplicates"]["wren/train ~ owl/test"]
    return {
        "verdict": spoken(e),
        "compared": f"Compared: {len(CONTENDERS)} contenders on the same test rows: {judged_on}. "
        f"One training run, seed {e['seed']}. Intervals: 90%, paired bootstrap of "
        f"{count(e['intervals']['resamples'])} resamples of the test rows",
        "best part": "The best of the base and the experts alone, chosen on validation rows, is "
        f"expert:owl at {nats(e['best_part'][e['measure']])}.",
        "router": f"linear on hidden_mean, selection {own['selection']}. Its decisions on the test rows",
        "utilisation": f"Utilisation share of rows; entropy {nats(own['utilisation_entropy'])} nats, "
        f"{share(own['utilisation_evenness'])} of the maximum",
        "calibration": "Accuracy against confidence with 95% intervals and the rows of each bin; "
        f"expected calibration error {nats(own['calibration_error'])}",
        "outside": f"{share(outside['abstained'])} of {count(outside['rows'])} such texts are, and "
        f"{share(outside['inside']['abstained'])} of the {count(outside['inside']['rows'])} test rows of domains. "
        f"AUROC: how often a text of no domain has more doubt than a test row, {nats(outside['auroc'])}",
        **(
            (
                unseen
                and {
                    "unseen": f"the base minus the mixture is {signed(unseen['difference'])} "
                    f"{between(signed, unseen['interval'])} nats per token: below 0 the base is better"
                }
            )
            or {}
        ),
        "duplicates": "Texts found in two splits or domains: wren/train ~ owl/test "
        f"({count(twice['exact'])} exact, {count(twice['near'])} near).",
        **{
            f"labels of {name}": f"Labels of {name} that differ only in case or white space: "
            f"{name} flies, {name} Flies. One spelling makes them one label."
            for name in EXPERTS
        },
    }


# ------------------------------------------------------------------------------------------------------ one run


@pytest.fixture(scope="module", params=[language, labelled], ids=["writes", "classifies"])
def run(request, make_run, tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any], Page]:
    evaluation, found = request.param(), texts(half=1)
    folder = make_run(tmp_path_factory.mktemp("runs") / "birds", evaluation, found)
    return evaluation, found, Page(write_report(folder))


def test_every_headline_is_the_figure_that_its_words_name(run):
    evaluation, _, page = run
    read = {}
    for tile in page.root.one("section", "tiles").all("div"):
        (words,) = (part for part in tile.parts if isinstance(part, Element) and part.tag == "span")
        read[words.words()] = f"{tile.one('b').words()} {tile.one('small').words()}"
    assert read == tiles(evaluation)


def test_every_cell_is_the_figure_of_its_row_and_its_column(run):
    evaluation, found, page = run
    parts = [part(evaluation) for part in (contenders, experts_by_domain, routers, written, costs)]
    expected = {place: text for part in [*parts, data(evaluation, found)] for place, text in part.items()}
    assert cells(page) == expected


def test_contenders_stand_from_the_best_to_the_worst_with_their_notes(run):
    evaluation, _, page = run
    rises, controls = evaluation["measure"] == "score", evaluation["controls"]
    table = page.root.one("table", "contenders").one("tbody")
    read = [row.one("th") for row in table.all("tr")]
    scores = [controls[key_of(head.words(without=("em",)))][evaluation["measure"]]["all"] for head in read]
    assert scores == sorted(scores, reverse=rises) and len(scores) == len(controls)
    notes = {head.words(without=("em",)): [note.words() for note in head.all("em")] for head in read}
    bounds = {"random": ["chance"], "oracle": ["bound"], "oracle_best": ["bound"]}
    assert {name: said for name, said in notes.items() if said} == {
        "joint": ["use this"],
        "mixture": ["tied"],
        **bounds,
    }


def test_figures_that_can_be_counted_in_several_ways_stand_with_their_definition(run):
    evaluation, _, page = run
    explained = [(one.one("dt").words(), one.one("dd").words()) for one in page.root.all("div") if [*one.all("dd")]]
    for domain, figures in evaluation.get("definitions", {}).items():
        assert all((domain, words) in explained for words in figures.values())
    for scores in evaluation.get("written", {}).values():
        shown = [metric for metric in scores["base"] if metric in DEFINITIONS]
        assert "exact_match" in shown
        assert all((metric.replace("_", " "), DEFINITIONS[metric]) in explained for metric in shown)
    assert evaluation.keys() & {"definitions", "written"}


def test_words_that_a_newcomer_may_not_know_are_explained_beside_the_contenders(run):
    _, _, page = run
    folded = {one.one("summary").words(): one for one in page.section("contenders").all("details")}
    explained = {one.words() for one in folded["Words on this page"].all("dt")}
    used = {
        "bound",
        "chance",
        "tied",
        "gap closed",
        "macro F1",
        "evenness",
        "groups",
        "truncated",
        "tokens cut",
        "dropped",
    }
    assert {*used, "active", "expected calibration error"} <= explained
    text = page.root.words()
    assert all(text.count(word) > 1 for word in explained), "a word that the page does not use"


def test_colours_say_better_where_an_expert_is_better_than_the_base(run):
    evaluation, _, page = run
    controls, key = evaluation["controls"], evaluation["measure"]
    table = page.root.one("table", "heat")
    for row in [*table.one("tbody").all("tr")][1:]:
        for domain, cell in zip(headings_of(table), row.all("td"), strict=True):
            more = controls[key_of(row.one("th").words())][key][domain] > controls["base"][key][domain]
            assert ("better" in cell.kinds, "worse" in cell.kinds) == ((more, not more)[:: 1 if key == "score" else -1])


def test_every_figure_in_a_sentence_is_the_one_that_its_words_name(run):
    evaluation, found, page = run
    text = page.root.words()
    for said in sentences(evaluation, found).values():
        assert said in text
    assert page.root.one("h1").words() == spoken(evaluation)
    assert [one.words() for one in page.root.one("ul", "reasons").all("li")] == evaluation["verdict"]["reasons"]


def test_no_figure_is_left_unread_and_no_two_read_alike(run):
    evaluation, found, page = run
    parts = [part(evaluation) for part in (tiles, contenders, experts_by_domain, routers, written, costs)]
    parts += [data(evaluation, found), sentences(evaluation, found), shares_of_samples(evaluation)]
    assert page.figures() <= {one for part in parts for one in numbers(part)}
    for part in parts[1:]:
        for table in {place[0] for place in part}:
            read = [text for place, text in part.items() if place[0] == table and text != "-"]
            assert len(read) == len(set(read))


def shares_of_samples(e: dict[str, Any]) -> Meaning:
    return {
        one["domain"]: " ".join(f"{name} {share(weight)}" for name, weight in sorted(one["weights"].items(), key=last))
        for one in e["samples"]
    }


def last(item: tuple[str, float]) -> float:
    return -item[1]


def test_a_sample_is_shown_with_its_own_texts_and_weights(run):
    evaluation, _, page = run
    articles = [*page.section("samples").all("article")]
    for sample, article in zip(evaluation["samples"], articles, strict=True):
        assert article.one("h3").words() == sample["domain"]
        assert article.one("b").words() == sample["chosen"]
        assert article.one("p", "weights").words() == shares_of_samples(evaluation)[sample["domain"]]
        read = {part.one("h4").words(): part.one("pre").words() for part in article.one("div", "texts").all("div")}
        ended = " finished" if sample["finish"] == "stop" else " stopped at the token limit"
        answer = "Answer of the mixture" + ("" if evaluation["measure"] == "score" else ended)
        expected = {"Prompt": sample["prompt"], "Reference": sample["reference"].strip(), answer: sample["text"]}
        assert read == expected
        titles = [one.attributes["title"] for one in article.all("span") if "title" in one.attributes]
        assert [title for title in titles if title != "not known"] == [
            f"{sample['chosen']} 1.50, base 2.75",
            "base 0.50",
        ]


def test_the_chart_of_lengths_writes_the_rows_under_their_length_and_the_share_above(run):
    evaluation, _, page = run
    (chart,) = (
        one
        for one in page.section("router").all("div", "chart")
        if (one.attributes["aria-label"] or "").startswith("Accuracy by length")
    )
    read = [text.words() for text in chart.all("text")]
    entries = evaluation["router"]["by_length"]
    assert len(entries) == len(LENGTHS)
    assert [text for text in read if text.startswith("(")] == [f"({count(one['rows'])})" for one in entries]
    assert [text for text in read if text.endswith("%")][-len(entries) :] == [
        f"{100 * one['accuracy']:.0f}%" for one in entries
    ]


# ------------------------------------------------------------------------------------------------------- trainings


@pytest.mark.parametrize("measure", ["validation", "score"])
def test_every_line_of_a_training_is_beside_what_its_own_log_reached(make_run, tmp_path, measure):
    draw, reached = Draw(0), dict[tuple[str, str], float]()
    run = make_run(tmp_path / "run", language())
    for log in (run / "metrics").rglob("*.jsonl"):
        log.unlink()
    for place in ("base", "experts/wren", "experts/owl", "controls/joint", "controls/joint_wide"):
        for rate in ("0.001", "0.003", "0.01"):
            title = place.rpartition("/")[2]
            reached[title, f"rate {rate}"] = best = draw.share()
            worse = best / 2 if measure == "score" else best + 1
            log_of(run / "metrics" / place / f"lr-{rate}.jsonl", measure, [worse, best, worse])
    for place, curve in (("router", "router"), ("controls/routers/mlp-text-all", "mlp-text-all")):
        reached["routers: validation", curve] = best = draw.share()
        log_of(run / "metrics" / place / "lr-0.01.jsonl", "score", [best / 2, best, best / 2])
    page = Page(write_report(run))
    read, won = {}, {}
    for figure in page.section("training").all("figure"):
        title = figure.one("figcaption").words(without=("small",))
        assert (figure.one("div", "chart").attributes["aria-label"] or "").startswith(f"{title} over the steps")
        for line in figure.one("ul", "legend").all("li"):
            if spans := [*line.all("span")]:
                curve = line.words(without=("span",))
                read[title, curve] = spans[0].words()
                won |= {title: curve} if "won" in line.kinds else {}
    words = {title: "macro F1" if title.startswith("routers") else measure for title, _ in reached}
    assert read == {(title, curve): f"{words[title]} {nats(value)}" for (title, curve), value in reached.items()}
    for title, curve in won.items():
        every = {other: value for (of, other), value in reached.items() if of == title}
        best_of = max if words[title] != "validation" else min
        assert curve == best_of(every, key=lambda one: every[one])
    assert won.keys() == words.keys()


def log_of(path: Path, measure: str, values: list[float]) -> None:
    rows = [{"step": step, "loss": 9.0 - step, measure: value} for step, value in enumerate(values, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# -------------------------------------------------------------------------------------------------------- two runs


@pytest.mark.parametrize("kind", [language, labelled])
def test_each_column_of_a_comparison_is_the_run_that_its_letter_names(make_run, tmp_path, kind):
    a, b = kind(half=0), kind(half=1)
    runs = [make_run(tmp_path / name, one) for name, one in (("left", a), ("right", b))]
    (runs[1] / "recipe.yaml").write_text("name: birds\nseed: 4\n")
    (runs[0] / "recipe.yaml").write_text("name: birds\nseed: 3\n")
    page = Page(compare_reports(*runs))
    assert page.root.one("h1").words() == "right against left"
    key, expected = (
        a["measure"],
        {("Settings that differ", "seed", "A"): "3", ("Settings that differ", "seed", "B"): "4"},
    )
    unit = "Mean score" if key == "score" else "Nats per token"

    def row(caption: str, label: str, written: Callable[[float], str], *path: str) -> None:
        mine, its = found(a, path), found(b, path)
        change = its - mine
        written_change = {nats: signed, count: "{:+,.0f}".format, seconds: "{:+.1f}".format}.get(written)
        text = written_change(change) if written_change else ("+" if change > 0 else "") + written(change)
        expected.update({(caption, label, "A"): written(mine), (caption, label, "B"): written(its)})
        expected[caption, label, "B minus A"] = text

    for name in CONTENDERS:
        row(f"{unit}, the best of A first", label(name), nats, "controls", name, key, "all")
    row(f"{unit}, the best of A first", "regret", nats, "regret", "value")
    row(f"{unit}, the best of A first", "gap closed", share, "gap_closed", "value")
    for domain in DOMAINS if key == "nats" else EXPERTS:
        row(f"The mixture by domain, {unit.lower()}", domain, nats, "controls", "router", key, domain)
    measures = "The mixture\N{RIGHT SINGLE QUOTATION MARK}s router on the test rows"
    row(measures, "accuracy", share, "router", "accuracy")
    row(measures, "macro F1", nats, "router", "macro_f1")
    row(measures, "calibration error", nats, "router", "calibration_error")
    row(measures, "utilisation entropy", nats, "router", "utilisation_entropy")
    for name in a["parameters"]:
        row("Size, speed and time", f"parameters, {PARTS.get(name, name)}", count, "parameters", name)
    row("Size, speed and time", "active bytes", size, "controls", "router", "cost", "bytes")
    for name in STAGES:
        row("Size, speed and time", f"seconds, {name}", seconds, "timing", "stages", name)
    if key == "nats":
        row("Size, speed and time", "tokens per second", count, "timing", "tokens_per_second", "router")
    assert cells(page) == expected
    assert page.figures() <= numbers(expected)
    for letter, name, one, article in zip("AB", ("left", "right"), (a, b), page.root.all("article"), strict=True):
        assert article.one("h3").words() == f"{letter} {name} seed {one['seed']}"
        assert article.one("p").words() == spoken(one)
        assert [reason.words() for reason in article.all("li")] == one["verdict"]["reasons"]


def found(evaluation: dict[str, Any], path: tuple[str, ...]) -> float:
    for step in path:
        evaluation = evaluation[step]
    return evaluation  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------------- a trace


def test_every_figure_of_a_trace_is_the_count_that_its_words_name(make_run, tmp_path):
    at = tmp_path / "trace.jsonl"
    rows = [decision("owl", 0.9)] * 5 + [decision("wren", 0.7)] * 11 + [decision("base", None)] * 3
    rows += [decision("owl", None, forced=True)] * 6
    rows += [decision("owl", 0.8, correction="owl")] * 4
    rows += [decision("wren", 0.6, correction="owl", prompt=f"Question {number}") for number in range(9)]
    at.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(make_run(tmp_path / "run", language()), trace=at))
    trace = page.section("trace")
    text = trace.words()
    assert (
        "38 decisions, from 2026-01-31 12:00 to 2026-01-31 12:00 UTC. In 6 of them the caller named the expert" in text
    )
    assert "share of the router\N{RIGHT SINGLE QUOTATION MARK}s decisions; it abstained 3 times" in text
    mean = (5 * 0.9 + 11 * 0.7 + 4 * 0.8 + 9 * 0.6) / 29
    assert f"Confidence mean {nats(mean)}" in text
    assert "13 of the router\N{RIGHT SINGLE QUOTATION MARK}s decisions have a correction" in text
    assert f"{share(4 / 13)} of these decisions were right" in text
    read = cells(page)
    caption = "Utilisation in the trace"
    assert {row: value for (of, row, _), value in read.items() if of == caption} == {
        "owl": share(9 / 32),
        "wren": share(20 / 32),
        "base": share(3 / 32),
    }
    (table,) = (one for one in trace.all("table") if one.one("caption").words() == "Corrected to another expert")
    listed = [
        (row.one("th").words(), *(cell.words() for cell in row.all("td"))) for row in table.one("tbody").all("tr")
    ]
    assert headings_of(table) == ["chosen", "should have been"] and listed == [
        (f"Question {number}", "wren", "owl") for number in range(9)
    ]


def decision(chosen: str, confidence: float | None, **more: Any) -> dict[str, Any]:
    shares = (
        None if confidence is None else {name: confidence if name == chosen else 1 - confidence for name in EXPERTS}
    )
    own = {"time": "2026-01-31T12:00:00Z", "prompt": "How many?", "tokens": 3, "probabilities": shares}
    own |= {"weights": {name: float(name == chosen) for name in EXPERTS}, "chosen": chosen, "forced": False}
    return own | {"mixture": "0" * 12, "correction": None} | more
