"""Which layers an adapter touches: "2..", "2..6" (2, 3, 4, 5) or "..4".

Knows nothing about adapters or models but their number of layers.
"""

import re

from moesaic.errors import RecipeError

RANGE = re.compile(r"(?=\.*\d)(\d{0,6})\.\.(\d{0,6})", re.ASCII)


def layer_bounds(text: str | None) -> tuple[int, int | None]:
    """First layer, and the one after the last (None: to the end). No text means all layers."""
    if text is None:
        return 0, None
    match = RANGE.fullmatch(text)
    if match is None:
        raise RecipeError("not a range of layers", expected="'2..', '2..6' or '..4'", got=repr(text))
    start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and start >= stop:
        raise RecipeError("an empty range of layers", got=repr(text), hint="the end is not part of the range")
    return start, stop


def layer_range(text: str | None, num_layers: int) -> range:
    """The layers that `text` means in a model of `num_layers`; a range beyond its last layer is refused."""
    start, stop = layer_bounds(text)
    if max(start + 1, stop or 0) > num_layers:
        raise RecipeError("a range of layers beyond the last one", expected=f"at most {num_layers} layers", got=text)
    return range(start, num_layers if stop is None else stop)
