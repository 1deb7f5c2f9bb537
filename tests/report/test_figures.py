"""Numbers as they are read, and texts without what cannot or should not be shown."""

import pytest

from moesaic.errors import WeightsError
from moesaic.report.figures import Figures, harmless, shown


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (3.0216, "nats", "3.022"),
        (0.0357, "signed", "+0.036"),
        (-0.00021, "signed", "+0.000"),
        (-0.34, "signed", "\N{MINUS SIGN}0.340"),
        (0.9818, "share", "98.2%"),
        (0.975, "level", "97.5%"),
        (0.95, "level", "95%"),
        (2139333, "count", "2,139,333"),
        (8557332, "bytes", "8.6\xa0MB"),
        (999, "bytes", "999\xa0bytes"),
        (-2_000, "signed bytes", "\N{MINUS SIGN}2.0\xa0kB"),
        (2_000_000_000, "signed bytes", "+2.0\xa0GB"),
    ],
)
def test_numbers_are_rounded_to_be_read(value, style, text):
    assert shown(value, style) == text


def test_a_figure_has_its_exact_value_its_place_and_its_file():
    figure = Figures({"a": {"b.c": [1 / 3]}}, of='the "file"')
    expected = '<span class="n" data-value="0.3333333333333333" data-key="a.b.c.0" data-of="the &#34;file&#34;">0.333'
    assert str(figure("nats", "a", "b.c", 0)) == f"{expected}</span>"


def test_the_difference_of_two_figures_names_both():
    figure = Figures({"a": 3.25, "b": 3.5})
    assert 'data-value="-0.25" data-key="a" data-minus="b">\N{MINUS SIGN}0.250<' in figure.minus(
        "signed", ("a",), ("b",)
    )
    assert "data-value" not in figure.minus("signed", ("a",), ("c",))


@pytest.mark.parametrize("path", [("none",), ("a", "b", "c"), ("list", 2), ("missing", 0)])
def test_where_nothing_is_known_a_dash_stands(path):
    found = Figures({"none": None, "a": {"b": 1}, "list": [1]})("nats", *path)
    assert "\N{EN DASH}" in found and "data-" not in found


@pytest.mark.parametrize("value", [True, "3.1", [1], {"a": 1}])
def test_what_is_no_number_is_refused_with_its_place(value):
    with pytest.raises(WeightsError, match="a.b: not a number"):
        Figures({"a": {"b": value}})("nats", "a", "b")


def test_harmless_keeps_text_and_line_breaks_and_replaces_what_hides():
    assert harmless("a\tb\nç 中\u200f") == "a\tb\nç 中\u200f"
    assert harmless("\x00\x1b\x7f\x9b\ud800\u202e\u2066\ufffe") == "\ufffd" * 8
    harmless("\ud800").encode()
