"""Ranges of layers: "2..", "2..6" (2, 3, 4, 5) or "..4".

Knows nothing about adapters, and only the number of layers of a model.
"""

import re

from moesaic.errors import RecipeError

RANGE = re.compile(r"(?=\.*\d)(\d{0,6})\.\.(\d{0,6})", re.ASCII)


def layer_bounds(text: str | None) -> tuple[int, int | None]:
    """First layer, and the layer after the last (None: no end). Without text: all layers."""
    if text is None:
        return 0, None
    match = RANGE.fullmatch(text)
    if match is None:
        raise RecipeError("not a range of layers", expected="'2..', '2..6' or '..4'", got=repr(text))
    start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and start >= stop:
        raise RecipeError("an empty range of layers", got=repr(text), hint="the end is exclusive")
    return start, stop


def layer_range(text: str | None, num_layers: int) -> range:
    """Layers of the range `text` in a model of `num_layers`; raises RecipeError beyond the last layer."""
    start, stop = layer_bounds(text)
    if max(start + 1, stop or 0) > num_layers:
        raise RecipeError("a range of layers beyond the last one", expected=f"at most {num_layers} layers", got=text)
    return range(start, num_layers if stop is None else stop)
