"""Property: a real browser shows texts that would be code elsewhere as text on a page, whatever its policy."""

import json
from typing import Any

import pytest

from moesaic.report import compare_reports, write_report

POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">\n"""
DEED = "document.title = 'taken'"
SCRIPT = f"<script>{DEED}</script>"
ATTACKS = [
    SCRIPT,
    f'"><img src=x onerror="{DEED}">',
    f"'><svg/onload={DEED}>",
    f"</textarea></style></title>{SCRIPT}",
    f"</pre></td></table><body onload={DEED}>",
    "{{ 7 * 191 }}{% include 'style.css' %}",
    "]]>--!><!--",
]
ALL = "".join(ATTACKS)


@pytest.fixture(scope="module")
def pages(forge, make_run, browse, seen, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    names = (ALL, f"wren{SCRIPT}")
    evaluation, data = forge(names)
    evaluation["name"] = ALL
    evaluation["verdict"]["reasons"].append(ALL)
    evaluation["router"]["tried"][1] |= {"kind": ALL, "feature": ALL, "selection": ALL, "examples": ALL}
    evaluation["router"] |= {"kind": ALL, "feature": ALL}
    evaluation["parameters"][ALL] = 1
    evaluation["timing"]["stages"][ALL] = 1.0
    evaluation["timing"]["tokens_per_second"][ALL] = 1.0
    sample = evaluation["samples"][0]
    sample |= {"prompt": ALL, "text": f"{ALL}\x00\x1b[31m\ud800\u202e", "reference": ALL, "finish": ALL, "chosen": ALL}
    sample["tokens"] = [[ALL, None, None, None], [ALL, names[0], 0.5, 1.0]]
    evaluation["samples"].append({key: value for key, value in sample.items() if key != "tokens"})
    evaluation["best_part"]["name"] = ALL
    data["files"] = {ALL: {"read": 3, "used": 2, "skipped": {ALL: 1}, "ignored": {ALL: 1}}}
    data["facts"] = {ALL: {"labels": {"train": {ALL: 3}}, "labels_alike": [[ALL, ALL]], "texts_with_two_labels": 1}}
    evaluation["definitions"] = {ALL: {ALL: ALL}}
    data |= {"provenance": {ALL: ALL}, "dropped": {names[0]: {ALL: 3}}, "duplicates": {ALL: {ALL: 1}}}
    run = make_run(folder / "run", evaluation, data)
    (run / "recipe.yaml").write_text(f"name: {json.dumps(ALL)}\n{json.dumps(ALL)}: {json.dumps(ALL)}\n")
    for place in ("experts/" + "<img src=x onerror=alert(1)>", "controls/routers/<script>1<"):
        (run / "metrics" / place).mkdir(parents=True)
        (run / "metrics" / place / f"lr-{SCRIPT.replace('/', '')}.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    row = {"time": "2026-01-31T12:00:00Z", "prompt": ALL, "tokens": 3, "probabilities": {"owl": 0.75, "wren": 0.25}}
    row |= {"weights": {"owl": 1.0, "wren": 0.0}, "chosen": "owl", "forced": False, "mixture": "0" * 12}
    trace = folder / "trace.jsonl"
    trace.write_text(json.dumps(row | {"correction": "wren"}) + "\n")

    files = {"kept": write_report(run, trace=trace), "compared": compare_reports(run, make_run(folder / "other"))}
    for name in ("kept", "compared"):
        document = files[name].read_text()
        assert document.count(POLICY) == 1
        files[f"{name} without policy"] = folder / f"{name}.html"
        files[f"{name} without policy"].write_text(document.replace(POLICY, ""))
    unescaped = f"<!doctype html><title>mine</title>{POLICY}<p>{ALL}"
    files["unescaped"], files["unescaped without policy"] = folder / "raw.html", folder / "bare.html"
    files["unescaped"].write_text(unescaped)
    files["unescaped without policy"].write_text(unescaped.replace(POLICY, ""))
    return dict(zip(files, map(seen, browse(*files.values())), strict=True))


@pytest.mark.parametrize("name", ["kept", "kept without policy", "compared", "compared without policy"])
def test_hostile_texts_do_nothing_in_a_browser(pages, name):
    page = pages[name]
    assert page.title.endswith(": moesaic report")  # not "taken"
    assert not {"script", "img", "textarea"} & {tag for tag, _ in page.elements}
    assert not {key for _, attributes in page.elements for key in attributes if key.startswith("on")}
    assert len(page.all("body")) == 1 and len(page.all("title")) == 1


def test_hostile_texts_are_there_to_be_read(pages):
    text = pages["kept"].text
    assert text.count(ALL) > 15
    assert "1337" not in text  # 7 * 191: no text is a template
    assert "\N{REPLACEMENT CHARACTER}[31m" in text and not {"\x1b", "\x00", "\u202e"} & set(text)
    assert pages["compared"].text.count(ALL) > 3


def test_the_same_texts_unescaped_would_act_but_not_under_the_policy(pages):
    assert pages["unescaped without policy"].title == "taken"
    assert pages["unescaped"].title == "mine"
