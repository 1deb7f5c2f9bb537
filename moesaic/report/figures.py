"""Figures of a page: looked up by path, rounded for readers, and exact in an attribute.

Knows nothing about what the numbers mean; every text on a page passes through `harmless`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from moesaic.errors import WeightsError, clipped
from moesaic.evaluate.units import size

CUT = "\N{HORIZONTAL ELLIPSIS}"
"""Stands before a prompt that lost its beginning."""
MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"

# Surrogates cannot be encoded, control characters are invisible, and marks of direction can fake the order of a text.
_HIDDEN = (range(0x20), range(0x7F, 0xA0), range(0xD800, 0xE000), range(0x202A, 0x202F), range(0x2066, 0x206A))
HARMLESS = {code: "\N{REPLACEMENT CHARACTER}" for codes in (*_HIDDEN, (0xFFFE, 0xFFFF)) for code in codes}
HARMLESS |= {ord(character): character for character in "\n\t"}


def harmless(value: Any) -> str:
    """`value` as text without control characters, surrogates and hidden marks of direction."""
    return str(value).translate(HARMLESS)


def shown(value: float, style: str) -> str:
    return STYLES[style](value).replace("-", MINUS).replace(" ", "\N{NO-BREAK SPACE}")


def look_up(document: Any, path: tuple[str | int, ...]) -> Any:
    """The value at a path of plain data; None where there is none."""
    for step in path:
        if isinstance(document, Mapping):
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int):
            document = document[step] if step < len(document) else None
        else:
            return None
    return document


STYLES: dict[str, Callable[[float], str]] = {
    "nats": "{:.3f}".format,
    "signed": "{:+z.3f}".format,
    "bits": "{:.4f}".format,
    "signed bits": "{:+z.4f}".format,
    "rate": "{:g}".format,
    "share": "{:.1%}".format,
    "signed share": "{:+z.1%}".format,
    "level": lambda share: f"{100 * share:g}%",
    "count": "{:,.0f}".format,
    "signed count": "{:+z,.0f}".format,
    "latency": "{:,.3f}".format,
    "seconds": "{:,.1f}".format,
    "signed seconds": "{:+z,.1f}".format,
    "bytes": size,
    "signed bytes": lambda count: f"{'+' if count > 0 else ''}{size(count)}",
}
"""Style -> the text of a rounded number."""


class Figures:
    """The figures of one file. `of` names the file or run in each figure; those of the evaluation carry no name."""

    def __init__(self, document: Any, of: str = ""):
        self.document, self.of = document, of

    def __call__(self, style: str, *path: str | int) -> Markup:
        return self.markup(style, number_at(self.document, path), path)

    def minus(self, style: str, path: tuple[str | int, ...], other: tuple[str | int, ...]) -> Markup:
        mine, its = number_at(self.document, path), number_at(self.document, other)
        value = None if mine is None or its is None else mine - its
        return self.markup(style, value, path, Markup(' data-minus="{}"').format(key_of(other)))

    def interval(self, style: str, *path: str | int) -> Markup:
        ends = (self(style, *path, 0), self(style, *path, 1))
        return Markup('<span class="interval">[{}, {}]</span>').format(*ends)

    def markup(self, style: str, value: float | None, path: tuple[str | int, ...], more: str | Markup = "") -> Markup:
        """A number as HTML: rounded text, exact `data-value`, path `data-key` and file `data-of`."""
        if value is None:
            return Markup('<span class="none" title="not known">{}</span>').format(NOTHING)
        of = Markup(' data-of="{}"').format(self.of) if self.of else ""
        return Markup('<span class="n" data-value="{}" data-key="{}"{}{}>{}</span>').format(
            repr(value), key_of(path), of, more, shown(value, style)
        )


def number_at(document: Any, path: tuple[str | int, ...]) -> float | None:
    """The number at a path, or None; raises WeightsError for any other value."""
    value = look_up(document, path)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WeightsError("not a number", field=key_of(path), got=clipped(value))
    return value


def key_of(path: tuple[str | int, ...]) -> str:
    return harmless(".".join(map(str, path)))
