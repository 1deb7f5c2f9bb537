"""A run's page: its figures are those of the files, whatever is missing is told, and it stands by itself."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import WeightsError
from moesaic.evaluate.wording import spoken
from moesaic.report import write_report


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "birds")


@pytest.fixture(scope="module")
def page(run) -> Path:
    return write_report(run)


@pytest.fixture(scope="module")
def in_browser(page, browse, seen) -> Any:
    return seen(*browse(page))


def found_at(document: Any, key: str) -> Any:
    """What stands at a dotted place; names may have dots themselves."""
    if not key:
        return document
    if isinstance(document, list):
        first, _, rest = key.partition(".")
        return found_at(document[int(first)], rest)
    name = max((name for name in document if key == name or key.startswith(f"{name}.")), key=len)
    return found_at(document[name], key[len(name) + 1 :])


def test_every_figure_in_the_browser_is_that_of_its_file(in_browser, run):
    files = {"": "evaluation.json", "data.json": "data.json"}
    documents = {of: json.loads((run / name).read_text()) for of, name in files.items()}
    assert len(in_browser.figures) > 200
    for attributes, text in in_browser.figures:
        document = documents[attributes.get("data-of", "")]
        expected = found_at(document, attributes["data-key"])
        if "data-minus" in attributes:
            expected -= found_at(document, attributes["data-minus"])
        assert float(attributes["data-value"]) == expected
        plain = text.replace("\N{MINUS SIGN}", "-").replace(",", "").replace("\N{NO-BREAK SPACE}", " ")
        ((number, unit),) = re.findall(r"^([-+]?[\d.]+)(%| [kMG]B| bytes|)$", plain)
        scale = {"%": 0.01, " kB": 1e3, " MB": 1e6, " GB": 1e9}.get(unit, 1)
        decimals = len(number.partition(".")[2])
        assert math.isclose(float(number) * scale, expected, abs_tol=0.5001 * scale * 10**-decimals)


def test_what_matters_of_the_evaluation_is_on_the_page(in_browser, evaluation):
    shown_keys = {attributes["data-key"] for attributes, _ in in_browser.figures}
    for name, control in evaluation["controls"].items():
        assert {f"controls.{name}.nats.{domain}" for domain in control["nats"]} <= shown_keys
        assert {f"controls.{name}.interval.{end}" for end in (0, 1)} <= shown_keys
        if name != "router":
            assert f"controls.{name}.versus_router.difference" in shown_keys
            assert f"controls.{name}.versus_router.interval.1" in shown_keys
        assert f"controls.{name}.cost.parameters" in shown_keys or "cost" not in control
    router = evaluation["router"]
    places = [one["data-key"] for one, _ in in_browser.figures if one["data-key"].startswith("router.confusion")]
    assert places == [f"router.confusion.counts.{i}.{j}" for i in range(2) for j in range(2)]
    bins = {f"router.reliability.{i}.rows" for i in range(len(router["reliability"]))}
    lengths = {f"router.by_length.{i}.rows" for i in range(len(router["by_length"]))}
    assert bins | lengths <= shown_keys
    assert {f"router.tried.{i}.{key}" for i in range(2) for key in ("accuracy", "macro_f1", "nats")} <= shown_keys
    assert {"regret.value", "regret.interval.0", "gap_closed.value", "gap_closed.interval.1"} <= shown_keys
    assert {f"timing.stages.{name}" for name in evaluation["timing"]["stages"]} <= shown_keys
    assert {"rows.owl/train", "dropped.owl.train: repeated", "duplicates.owl/train ~ wren/test.near"} <= shown_keys
    assert {"files.texts/owls.jsonl.used", "files.texts/owls.jsonl.skipped.not JSON"} <= shown_keys


def test_the_verdict_is_the_first_thing_said_and_its_row_is_marked(in_browser, evaluation):
    text = in_browser.text
    verdict = evaluation["verdict"]
    assert text.index("birds") < text.index(spoken(evaluation)) < text.index(verdict["reasons"][0])
    assert text.index(verdict["reasons"][-1]) < text.index("Contenders")
    assert len(in_browser.all("h1")) == 1 and in_browser.title == "birds: moesaic report"
    rows = [attributes["class"].split() for attributes in in_browser.all("tr") if attributes.get("class")]
    assert sum("chosen" in classes for classes in rows) == 1
    assert "use this" in text


def test_the_page_loads_nothing_and_runs_nothing(page, seen):
    document = page.read_text()
    parsed = seen(document)
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base"} & {
        tag for tag, _ in parsed.elements
    }
    for _, attributes in parsed.elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcset", "srcdoc")}
        assert all((value or "").startswith("#") for name, value in attributes.items() if name.endswith("href"))
    assert "@import" not in document and not re.search(r"url\((?!#)", document) and "http:" not in document
    policies = [one["content"] for one in parsed.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_is_clipped_on_a_screen_and_only_tables_scroll_on_a_phone(page, browse, seen, tmp_path, width):
    measure = """<script>
    const wide = [...document.querySelectorAll("html, .scroll")].filter(one => one.scrollWidth > one.clientWidth)
    document.title = "wide: " + (wide.map(one => one.getAttribute("aria-label") || "page").join(", ") || "nothing")
    </script></body>"""
    document = page.read_text()
    (policy,) = re.findall(r"<meta http-equiv[^>]*>", document)
    measured = tmp_path / "measured.html"
    measured.write_text(document.replace(policy, "").replace("</body>", measure))
    (title,) = (seen(one).title for one in browse(measured, width=width))
    wide = title.removeprefix("wide: ").split(", ")
    assert wide == ["nothing"] if width == 1280 else "Contenders" in wide and "page" not in wide


def test_tables_say_what_their_cells_belong_to(page, seen):
    parsed = seen(page.read_text())
    assert len(parsed.all("table")) == len(parsed.all("caption")) > 8
    assert all("scope" in attributes for attributes in parsed.all("th"))
    anchors = {attributes["href"][1:] for attributes in parsed.all("a")}
    assert anchors <= {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}


def test_ids_are_unique_and_every_shape_that_is_used_is_there(page):
    document = page.read_text()
    ids = re.findall(r'\bid="([^"]+)"', document)
    assert {name for name in ids if ids.count(name) > 1} == set()
    assert set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', document)) <= set(ids)


def test_the_same_run_gives_the_same_bytes(run, page, tmp_path):
    moved = shutil.copytree(run, tmp_path / "elsewhere")
    assert write_report(moved, tmp_path / "again.html").read_bytes() == page.read_bytes()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("data.json", "There is no data.json in this run."),
        ("recipe.yaml", "There is no recipe.yaml in this run."),
        ("metrics", "There are no training logs in this run"),
    ],
)
def test_what_a_run_lacks_is_told(make_run, seen, tmp_path, name, told):
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    assert told in seen(write_report(run).read_text()).text


def test_what_an_evaluation_lacks_is_told(make_run, seen, evaluation, tmp_path):
    for key in ("parameters", "timing", "samples", "domains", "truncated", "regret", "gap_closed", "rows", "intervals"):
        del evaluation[key]
    evaluation["router"] = {"tried": []}
    for name in ("base", "router", "average"):
        del evaluation["controls"][name]
    text = seen(write_report(make_run(tmp_path / "run", evaluation)).read_text()).text
    for told in (
        "The base or the experts were not scored.",
        "This evaluation holds no report on the router.",
        "This evaluation holds no report on text of no domain.",
        "No routers were compared.",
        "This evaluation holds no samples.",
        "Parameters were not counted.",
        "The speed of decoding was not measured.",
    ):
        assert told in text


def test_an_evaluation_of_an_older_version_shows_what_it_has(make_run, seen, evaluation, tmp_path):
    del evaluation["router"]["reliability"], evaluation["router"]["by_length"], evaluation["samples"][0]["tokens"]
    text = seen(write_report(make_run(tmp_path / "run", evaluation)).read_text()).text
    assert "This evaluation holds no bins of confidence." in text
    assert "This evaluation holds no accuracy by length." in text
    assert "How many owls" in text and "Three, I say." in text


def test_damaged_parts_are_told_without_the_folders_of_this_machine(make_run, seen, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "data.json").write_text("{")
    (run / "recipe.yaml").write_bytes(b"\xff")
    with (run / "metrics" / "base" / "lr-0.003.jsonl").open("a") as log:
        log.write("nothing\n")
    document = write_report(run).read_text()
    text = seen(document).text
    assert "data.json cannot be read: data.json: not usable as JSON" in text
    assert "recipe.yaml cannot be read: UnicodeDecodeError." in text
    assert "metrics cannot be read: metrics/base/lr-0.003.jsonl:61: not usable as JSON" in text
    assert str(tmp_path) not in document


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "metrics/base/lr-0.003.jsonl",
            '{"step": 1, "loss": 2}\n{"loss": 2}\n',
            "lr-0.003.jsonl:2: step: not a number.",
        ),
        ("metrics/base/lr-0.003.jsonl", '{"step": 1, "loss": null}\n', "lr-0.003.jsonl:1: loss: not a number."),
        ("data.json", '{"rows": []}', "data.json: rows: wrong value."),
        ("data.json", '{"files": {"a": {"read": "x", "used": 1}}}', "data.json: files.a.read: wrong value."),
        ("data.json", '{"files": {"a": {"read": 1}}}', "data.json: files.a.used: wrong value."),
        ("data.json", '{"rows": {"owl/test": null}}', "data.json: rows.owl/test: wrong value."),
        ("data.json", '{"dropped": {"owl": 3}}', "data.json: dropped: wrong value."),
        ("data.json", '{"facts": {"owl": 3}}', "data.json: facts: wrong value."),
        ("data.json", '{"facts": {"owl": {"labels": {"test": {"a": "b"}}}}}', "facts.owl.labels.test.a: wrong value."),
        ("data.json", '{"facts": {"owl": {"labels_alike": "ab"}}}', "facts.owl.labels_alike: wrong value."),
        ("data.json", '{"files": {"a": {"read": 1, "used": 1, "ignored": []}}}', "files.a.ignored: wrong value."),
    ],
)
def test_parts_that_hold_something_else_are_told(make_run, seen, tmp_path, name, content, told):
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    assert told in seen(write_report(run).read_text()).text


def test_without_a_sound_evaluation_it_is_said_what_to_type(make_run, tmp_path):
    with pytest.raises(WeightsError, match="no such run directory; moesaic run RECIPE"):
        write_report(tmp_path / "nowhere")
    run = make_run(tmp_path / "run")
    at = run / "evaluation.json"
    lines = json.dumps(json.loads(at.read_text()), indent=1).splitlines()
    at.write_text("\n".join([*lines[:30], "oops", *lines[30:]]))
    with pytest.raises(WeightsError, match="moesaic evaluate RECIPE") as caught:
        write_report(run)
    assert (caught.value.path, caught.value.line) == (at, 31)
    at.unlink()
    with pytest.raises(WeightsError, match="has not been evaluated; moesaic evaluate RECIPE"):
        write_report(run)
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda found: found.pop("controls"), "controls: wrong value; expected an object; got nothing"),
        (lambda found: found.update(verdict=[]), "verdict: wrong value; expected an object; got \\[\\]"),
        (lambda found: found["verdict"].pop("sentence"), "not what an evaluation holds"),
        (lambda found: found["controls"]["base"].pop("nats"), "not what an evaluation holds"),
        (lambda found: found["regret"].update(value="many"), "regret.value: not a number.*many"),
        (lambda found: found["samples"][0].update(tokens=[["x"]]), "not what an evaluation holds"),
    ],
)
def test_an_evaluation_that_is_something_else_is_refused(make_run, evaluation, tmp_path, damage, told):
    damage(evaluation)
    with pytest.raises(WeightsError, match=told) as caught:
        write_report(make_run(tmp_path / "run", evaluation))
    assert caught.value.path == tmp_path / "run" / "evaluation.json"


def test_a_page_goes_where_it_is_told(run, tmp_path):
    assert write_report(run) == run / "report" / "index.html"
    assert write_report(run, tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert (tmp_path / "new" / "page.html").is_file()
