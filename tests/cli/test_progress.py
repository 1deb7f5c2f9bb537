import io
import re

import pytest
from rich.console import Console

from moesaic.cli import progress
from moesaic.cli.progress import Bars, Lines, Quiet, amount, figures, shown
from moesaic.runs.progress import Progress, Silent


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def console(terminal, width=80):
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, highlight=False, markup=False), file


def tell(listener, clock):
    listener.note("data: 0.3 s")
    listener.begin("features train math", 10)
    listener.row("features train math", {"step": 10})
    listener.end("features train math", "read")
    listener.begin("math", 100)
    listener.begin("a name that is much longer than there is room for it", 100)
    for step in range(1, 31):
        clock.now += 1
        listener.row("math", {"step": step, "loss": 3 - step / 100, "rate": 12345.6})
    listener.end("math", "validation 2.345 nats a token")


def test_chosen_by_the_terminal():
    assert isinstance(Silent(), Progress)
    for terminal, quiet, kind in ((True, False, Bars), (False, False, Lines), (True, True, Quiet)):
        with shown(quiet, console(terminal)[0]) as listener:
            assert type(listener) is kind and isinstance(listener, Progress)


def test_lines(clock):
    to, file = console(False)
    with shown(console=to) as listener:
        tell(listener, clock)
    assert file.getvalue().splitlines() == [
        "data: 0.3 s",
        "math 10/100  loss 2.900  12.3k tok/s",
        "math 20/100  loss 2.800  12.3k tok/s",
        "math 30/100  loss 2.700  12.3k tok/s",
        "math  validation 2.345 nats a token  30.0 s",
    ]


def test_what_took_long_leaves_a_line_though_nothing_was_trained(clock):
    to, file = console(False)
    with shown(console=to) as listener:
        listener.begin("joint", 1)
        clock.now += 11
        listener.end("joint", "2.345 nats a token")
    assert file.getvalue() == "joint  2.345 nats a token  11.0 s\n"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_bars_fit_and_leave_what_mattered(clock, width):
    to, file = console(True, width)
    with shown(console=to) as listener:
        tell(listener, clock)
        listener.display.refresh()
        seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
        assert max(len(line) for part in seen.split("\n") for line in part.split("\r")) <= width
        assert "✓ math  validation" in seen and "✓ features" not in seen
        assert "a name that" in seen
    assert file.getvalue().endswith("\x1b[2K")  # the bar of what never ended is wiped away


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (873.4, "873"), (12345, "12.3k"), (4.56e6, "4.56M"), (999.9, "1000")]
)
def test_amounts(value, text):
    assert amount(value) == text


def test_what_classifies_is_told_in_rows_and_by_its_score():
    assert [*figures({"loss": 0.5, "row_rate": 20.0, "score": 0.875})] == ["loss 0.500", "   20 rows/s", "score 0.875"]
