"""The page of a day's rounds: every figure that of the log, and no round of another day."""

import json

import pytest

from moesaic.report.rounds import LOG, write_day

DAY = "2026-11-30"


def line(number: int, day: str = DAY, outcome: str = "kept", **more: object) -> dict:
    domains = {
        name: {
            "before": 2.0 + number,
            "after": 1.9 + number,
            "difference": [-0.1, -0.2, -0.05],
            "since_start": [0, 0, 0],
        }
        for name in ("owl", "wren")
    }
    own = {"round": number, "expert": "owl", "steps": 50, "lr": 0.003, "outcome": outcome, "worse": []}
    own |= {"before": 1.25, "after": 1.125, "difference": [-0.125, -0.25, -0.0625], "domains": domains}
    return own | {"rows": {}, "timing": {"ended": f"{day}T10:0{number}:30+00:00", "seconds": 1.5}} | more


def write(folder, *lines):
    (folder / LOG).write_text("".join(json.dumps(one) + "\n" for one in lines))


def test_a_day_shows_its_rounds_and_no_other(seen, tmp_path):
    lost = line(3, outcome="worse elsewhere", worse=["wren"])
    write(tmp_path, line(1, "2026-11-29"), line(2), lost, line(4, "2026-12-01"))
    at = write_day(tmp_path, DAY)
    assert at == tmp_path / f"{DAY}.html"
    page = seen(at.read_text())
    found = {(one["data-of"], one["data-key"]): float(one["data-value"]) for one, _ in page.figures}
    assert {of for of, _ in found} == {f"{LOG}:2", f"{LOG}:3"}
    for key, value in {"before": 1.25, "after": 1.125, "difference.1": -0.25, "steps": 50}.items():
        assert found[f"{LOG}:2", key] == value
    assert "2 rounds ended on this day (UTC). In 1 of them the new expert was kept." in page.text
    assert "worse elsewhere: wren" in page.text and "10:03:30" in page.text


def test_a_round_that_diverged_has_no_figures_and_hostile_names_stay_text(seen, tmp_path):
    bare = {key: value for key, value in line(1).items() if key not in ("before", "after", "difference", "domains")}
    write(tmp_path, {**bare, "outcome": "diverged", "expert": "<script>alert(1)</script>"})
    text = write_day(tmp_path, DAY).read_text()
    assert "<script>" not in text and "diverged" in seen(text).text
    assert "No round of this day was judged." in seen(text).text


def test_the_chart_follows_what_each_round_left():
    from moesaic.report.rounds import standing

    curve = standing([line(1), line(2, outcome="no clear gain")], "owl", 0)
    assert [*curve.x] == [1, 2] and [*curve.y] == [pytest.approx(2.9), 4.0]
