"""Property: the style sheet: text stands out from whatever is behind it, by day and by night."""

import re
from importlib.resources import files

import pytest

CSS = files("moesaic.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
ENOUGH = 4.5  # WCAG 2.2, 1.4.3
GRAPHIC = 3.0  # WCAG 2.2, 1.4.11

Colour = tuple[float, float, float]


def palette(night: bool) -> dict[str, Colour]:
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    found: dict[str, Colour] = {}
    for block in blocks[: 2 if night else 1]:
        for name, value in re.findall(r"--(\w+): #(\w{6})", block):
            found[name] = tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return found


def mixed(colour: Colour, share: float, ground: Colour) -> Colour:
    return tuple(c * share + g * (1 - share) for c, g in zip(colour, ground, strict=True))


def contrast(a: Colour, b: Colour) -> float:
    def luminance(colour: Colour) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("night", [False, True])
def test_text_is_readable_on_every_ground(night):
    colours = palette(night)
    paper = colours["paper"]
    for text in ("ink", "soft", "accent"):
        assert contrast(colours[text], paper) >= ENOUGH
        assert contrast(colours[text], colours["raised"]) >= ENOUGH
    assert contrast(paper, colours["accent"]) >= ENOUGH
    strongest = max(int(share) for share in re.findall(r"var\(--c\) (\d+)%", CSS.split(".t.s1")[1])) / 100
    for number in range(12):
        assert contrast(colours["ink"], mixed(colours[f"c{number}"], strongest, paper)) >= ENOUGH
        assert contrast(colours[f"c{number}"], paper) >= GRAPHIC
    shares = re.findall(r"var\(--(better|worse)\) calc\((?:(\d+)% \+ )?var\(--w\) \* \.(\d+)%\)", CSS)
    for name, least, more in shares:  # the ground of either map, at the farthest from 0
        strongest = int(least or 0) / 100 + float(f"0.{more}")
        assert contrast(colours["ink"], mixed(colours[name], strongest, colours["raised"])) >= ENOUGH
    assert len(shares) == 4


def test_the_twelve_colours_differ():
    for night in (False, True):
        colours = palette(night)
        assert len({colours[f"c{number}"] for number in range(12)}) == 12
