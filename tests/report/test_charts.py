"""Charts: SVG that has the page's colours, no ids of its own but those it needs, and the same bytes every time."""

import re
from xml.etree import ElementTree

import pytest

from moesaic.report import charts
from moesaic.report.charts import Curve

BINS = [
    {"from": 0.0, "below": 0.5, "rows": 0, "confidence": None, "accuracy": None},
    {"from": 0.5, "below": 1.0, "rows": 8, "confidence": 0.9, "accuracy": 0.75, "interval": [0.4, 0.9]},
]
LENGTHS = [
    {"from": 0, "below": 8, "rows": 3, "accuracy": 1 / 3},
    {"from": 8, "below": 16, "rows": 0, "accuracy": None},
    {"from": 16, "below": None, "rows": 1234, "accuracy": 0.875},
]


def all_charts() -> list[str]:
    lines = [Curve([1, 2, 3], [3.0, 2.0, 1.5], [(3, 1.75)], number) for number in range(14)]
    return [
        charts.reliability(BINS, "a"),
        charts.by_length(LENGTHS, "b"),
        charts.histogram(BINS, "confidence", "c"),
        charts.curves(lines, "nats", "d"),
        charts.curves([Curve([], [], [], 0)], "nats", "e"),
    ]


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    return all_charts()


def test_a_chart_is_one_element_that_scales(drawn):
    for chart in drawn:
        svg = ElementTree.fromstring(chart.replace("xlink:href", "href"))
        assert svg.tag == "svg" and svg.keys() == ["viewBox", "aria-hidden", "focusable"]


def test_colours_and_font_are_the_pages(drawn):
    for chart in drawn:
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", chart)) - {"none"} <= set(charts.VARIABLES.values())
        assert "#0" not in chart and "font-family" not in chart and "var(--ink)" in chart
    lines = set(re.findall(r"stroke: (var\(--c\d+\))", drawn[3]))
    assert lines == {f"var(--c{number})" for number in range(12)}


def test_texts_are_texts(drawn):
    assert {"accuracy", "confidence", "rows"} <= set(re.findall(r">([a-z]+)</text>", drawn[0]))
    assert ">8</text>" in drawn[0], "the rows of a bin stand above it"
    labels = re.findall(r">([^<a-z]+)</text>", drawn[1])
    assert {"0\N{EN DASH}7", "(3)", "16+", "(1,234)", "33%", "88%"} <= set(labels)


def test_the_same_numbers_give_the_same_bytes_and_no_date(drawn):
    assert all_charts() == drawn
    assert not re.search(r"<metadata|<!--|matplotlib|20\d\d-", "".join(drawn))


def test_charts_of_one_page_share_no_id(drawn):
    ids = [name for chart in drawn[:3] for name in set(re.findall(r'id="([^"]+)"', chart))]
    assert len(ids) == len(set(ids)) > 3


def test_lines_beyond_the_colours_differ_in_their_dashes():
    looks = [(number % charts.COLOURS, charts.dash_of(number)) for number in range(36)]
    assert len(set(looks)) == 36
    assert all(charts.dash_of(number) != charts.dash_of(number + 1) for number in range(11))


def test_a_curve_that_hardly_moves_is_drawn_flat_with_ticks_that_say_its_values():
    drawn = charts.curves([Curve([1, 2, 3], [0.99953, 0.99954, 0.99953], [(2, 1.0)], 0)], "macro F1", "flat")
    numbers = [text for text in re.findall(r">([^<>]+)</text>", drawn) if text not in ("step", "macro F1")]
    assert not [text for text in numbers if "e" in text], "no offset that the ticks would have to be added to"
    assert "1.000" in numbers and max(map(float, (n for n in numbers if "." in n))) < 1.02


def test_the_running_mean_is_over_the_last_twentieth():
    assert charts.smoothed([4.0, 2.0, 3.0]) == ([4.0, 2.0, 3.0], 1)
    means, window = charts.smoothed([float(step) for step in range(40)])
    assert window == 2 and means[:3] == [0.0, 0.5, 1.5] and means[-1] == 38.5


def test_a_long_curve_keeps_its_end_and_few_points():
    x, y = charts.thinned(range(10_001), range(10_001))
    assert len(x) <= charts.POINTS and x[-1] == y[-1] == 10_000 and x[1] - x[0] == x[-1] - x[-2]
    assert charts.thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])
