"""Charts as inline SVG with the colours and the font of the page; the same numbers give the same bytes.

Knows nothing about runs: bins and curves come in. A chart contains only numbers; names are in the page's legend.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders, which no chart uses otherwise, for the colours of the page.
INK, FAINT, PAPER = "#010203", "#010204", "#010205"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)", PAPER: "var(--paper)"}
COLOURS = 12
SERIES = [f"#0102{0x10 + number:02x}" for number in range(COLOURS)]
VARIABLES |= {colour: f"var(--c{number})" for number, colour in enumerate(SERIES)}
DASHES = ((0, ()), (0, (5, 2)), (0, (1.5, 1.5)))

WIDTH, HEIGHT = 4.4, 2.9  # inches of 72 units: as wide as a phone, so that text stays readable there
ABOVE: dict[str, Any] = {
    "textcoords": "offset points",
    "ha": "center",
    "va": "bottom",
    "color": INK,
    "fontsize": 10,
}
POINTS = 400
FLAT = 0.01  # a curve that moves by less than this share of its level looks flat


@dataclass(frozen=True)
class Curve:
    """A line of a chart with its marks; `number` gives its colour and dashes."""

    x: Sequence[float]
    y: Sequence[float]
    marks: Sequence[tuple[float, float]]
    number: int


@dataclass(frozen=True)
class Band:
    """A line of a chart between its lowest and highest values; `number` gives its colour and dashes."""

    x: Sequence[float]
    low: Sequence[float]
    y: Sequence[float]
    high: Sequence[float]
    number: int


def reliability(bins: list[dict[str, Any]], name: str) -> Markup:
    """Draw accuracy with its interval against confidence, beside perfect calibration; below it the rows of each bin."""
    figure, (top, low) = _figure(rows=[3, 1])
    filled = [entry for entry in bins if entry["rows"]]
    width = max((entry["below"] - entry["from"] for entry in bins), default=0.1)
    middles = [(entry["from"] + entry["below"]) / 2 for entry in filled]
    top.bar(middles, [entry["accuracy"] for entry in filled], width * 0.92, color=SERIES[0], alpha=0.35, linewidth=0)
    top.plot([0, 1], [0, 1], color=INK, linewidth=1, dashes=(3, 3))
    points = [[entry[key] for entry in filled] for key in ("confidence", "accuracy")]
    top.plot(*points, "o", color=SERIES[0], markersize=5, clip_on=False, zorder=3)
    for entry in filled:
        top.plot(
            [entry["confidence"]] * 2,
            entry.get("interval", [entry["accuracy"]] * 2),
            color=SERIES[0],
            linewidth=1.5,
            clip_on=False,
            zorder=2,
        )
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    top.tick_params(labelbottom=False)
    low.bar(middles, [entry["rows"] for entry in filled], width * 0.92, color=INK, alpha=0.5, linewidth=0)
    low.set(xlim=(0, 1), xlabel="confidence", ylabel="rows")
    most = max((entry["rows"] for entry in filled), default=1)
    for entry, middle in zip(filled, middles, strict=True):
        low.annotate(f"{entry['rows']:,}", (middle, entry["rows"]), (0, 2), **ABOVE)
    low.set(ylim=(0, most * 1.6), yticks=[])
    return _svg(figure, name)


def by_length(entries: list[dict[str, Any]], name: str) -> Markup:
    """Draw the accuracy of rows by the length of their prompt, with the number of rows under each bar."""
    figure, (axes,) = _figure()
    heights = {index: entry["accuracy"] for index, entry in enumerate(entries) if entry["rows"]}
    axes.bar([*heights], [*heights.values()], 0.6, color=SERIES[0], alpha=0.5, linewidth=0)
    for index, height in heights.items():
        axes.annotate(f"{height:.0%}", (index, height), (0, 3), **ABOVE)
    axes.set(xlim=(-0.6, len(entries) - 0.4), ylim=(0, 1.12), xlabel="tokens of the prompt, and rows")
    axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    axes.set_xticks(range(len(entries)), [f"{span(entry)}\n({entry['rows']:,})" for entry in entries])
    axes.tick_params(axis="x", length=0)
    return _svg(figure, name)


def span(entry: dict[str, Any]) -> str:
    """Name a bin of lengths: `8–15`, `128+`."""
    return f"{entry['from']}+" if entry["below"] is None else f"{entry['from']}\N{EN DASH}{entry['below'] - 1}"


def histogram(bins: list[dict[str, Any]], label: str, name: str) -> Markup:
    figure, (axes,) = _figure()
    middles = [(entry["from"] + entry["below"]) / 2 for entry in bins]
    widths = [(entry["below"] - entry["from"]) * 0.92 for entry in bins]
    axes.bar(middles, [entry["rows"] for entry in bins], widths, color=SERIES[0], linewidth=0)
    axes.set(xlim=(0, 1), xlabel=label, ylabel="decisions")
    axes.locator_params(axis="y", nbins=4, integer=True)
    return _svg(figure, name)


def curves(lines: list[Curve], ylabel: str, name: str) -> Markup:
    """Draw lines over the steps of a training."""
    figure, (axes,) = _figure()
    for line in lines:
        colour, dashes = SERIES[line.number % COLOURS], DASHES[dash_of(line.number)]
        axes.plot(*thinned(line.x, line.y), linewidth=1.3, alpha=0.9, color=colour, linestyle=dashes)
        if line.marks:
            marks = zip(*line.marks, strict=True)
            axes.plot(*marks, "o", color=colour, markeredgecolor=PAPER, markersize=6, zorder=3)
    axes.set(xlabel="step", ylabel=ylabel)
    axes.set_ylim(*_framed(lines))
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.margins(x=0.03)
    return _svg(figure, name)


def bands(
    lines: Sequence[Band], xlabel: str, ylabel: str, name: str, ratios: bool = False, dots: bool = True
) -> Markup:
    """Draw lines and what lies between their lowest and highest values; `ratios`: x on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    figure, (axes,) = _figure()
    for line in lines:
        colour, dashes = SERIES[line.number % COLOURS], DASHES[dash_of(line.number)]
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        mark = "o" if dots else ""
        axes.plot(line.x, line.y, linewidth=1.3, color=colour, linestyle=dashes, marker=mark, markersize=4)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if ratios:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.locator_params(axis="y", nbins=5)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.margins(x=0.04)
    return _svg(figure, name)


def short(value: float) -> str:
    """A number in few characters: 0.004, 250, 60k, 1.5M, 2G."""
    size, letter = next(((size, letter) for size, letter in LARGE if abs(value) >= size), (1, ""))
    return f"{value / size:.3g}{letter}"


LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def dash_of(number: int) -> int:
    """The index of a line's dashes; lines with neighbouring colours have different dashes."""
    return (number + number // COLOURS) % len(DASHES)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    step = max(1, -(-len(x) // POINTS))
    chosen = [*range(len(x) - 1, -1, -step)][::-1]
    return [x[i] for i in chosen], [y[i] for i in chosen]


def smoothed(values: Sequence[float]) -> tuple[list[float], int]:
    """The running mean over a window of a twentieth of the steps, and the size of that window."""
    window = max(1, len(values) // 20)
    sums = [*accumulate(values, initial=0.0)]
    starts = [max(0, end - window) for end in range(1, len(sums))]
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, 1)], window


def _framed(lines: list[Curve]) -> tuple[float, float]:
    """Limits that show the progress: the first twentieth of a curve may leave the frame at the top."""
    seen = [value for line in lines for value in (*line.y[len(line.y) // 20 :], *(y for _, y in line.marks))]
    if not seen:
        return 0.0, 1.0
    low, high = min(seen), max(seen)
    room = max((high - low) * 0.08, abs(high) * FLAT or 0.08)
    return low - room, high + room


def _figure(rows: Sequence[int] = (1,)) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, HEIGHT), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
    axes = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": list(rows)})[:, 0]
    for one in axes:
        one.set_facecolor("none")
        one.grid(axis="y", color=FAINT, linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right", "left"]].set_visible(False)
        one.spines["bottom"].set_color(FAINT)
        one.tick_params(colors=INK, labelsize=10, length=3, width=0.8, color=FAINT)
        one.tick_params(axis="y", length=0)
        one.xaxis.label.set(color=INK, size=10)
        one.yaxis.label.set(color=INK, size=10)
    return figure, list(axes)


def _svg(figure: "Figure", name: str) -> Markup:
    """Write the figure as one SVG element without prolog, date and needless ids, in the colours of the page."""
    from matplotlib import rc_context

    out = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg)[^>]*?( viewBox="[^"]*")[^>]*>', r'\1\2 aria-hidden="true" focusable="false">', text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"(\d\.\d\d)\d+(?!\d*</text>)", r"\1", text)  # coordinates, but not the labels of ticks
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(re.sub(r"\s*\n\s*", "\n", text).strip())
