"""`plan`: prints the sizes, differences and placement of a composition, as a table or as JSON.

Knows nothing about how they are computed: see `compose.plan`.
"""

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table

from moesaic.cli.printing import aligned, harmless, json_text, size, stdout, width_of
from moesaic.compose.placement import bytes_of
from moesaic.compose.plan import Plan
from moesaic.errors import RecipeError, clipped

SHOWN = 20
"""Differences that are printed; JSON has all."""


def show_plan(found: Plan, as_json: bool) -> None:
    """Print a plan; then raises if the models do not fit each other or the memory."""
    if as_json:
        print(json_text(found.told(), indent=2))
    else:
        console = stdout()
        console.print(Group(weights(found), *lines(found, width_of(console))))
    found.require()


def rates(text: str | None) -> dict[str, tuple[float, float]]:
    """Read the bytes per second from memory and from disk, such as 12GB,2GB; empty without a text."""
    if text is None:
        return {}
    parts = text.split(",")
    if len(parts) != 2:
        expected = "bytes per second from memory and from disk, such as 12GB,2GB"
        raise RecipeError("not two rates", field="bandwidth", expected=expected, got=repr(text))
    near, far = (float(bytes_of(part, "bandwidth")) for part in parts)
    return {"bandwidth": (near, far)}


def weights(found: Plan) -> Table:
    """Table with a row for each part: its role, parameters and bytes."""
    table = Table(box=None, pad_edge=False)
    for title in ("part", "for", "parameters", "memory"):
        table.add_column(title, justify="left" if title in ("part", "for") else "right")
    whose = {"shared": "all", "expert": "its rows", "router": "all", "working": "each request"}
    for part in found.parts:
        count = f"{part.parameters:,}" if part.parameters else ""
        whom = "training" if part.role == "working" and found.training else whose[part.role]
        table.add_row(harmless(clipped(part.name, 40)), whom, count, size(part.bytes))
    table.add_row("loaded", "", f"{found.parameters:,}", size(found.resident))
    table.add_row("at work", "", "", size(found.resident + found.working))
    return table


def lines(found: Plan, width: int) -> Iterator[str]:
    """Lines below the table: request, placement, differences and notes."""
    rows = "1 row" if found.batch == 1 else f"{found.batch} rows"
    facts = [("computed in", found.dtype), ("a request", f"{rows} of {found.context:,} tokens")]
    if found.site:
        experts = sum(part.role == "expert" for part in found.parts)
        facts.insert(0, ("site", f"{found.site}, {found.active} of {experts} experts for a row"))
    facts.append(("loaded in", ", ".join(f"{name} {size(count)}" for name, count in found.by_dtype.items())))
    yield "\n" + "\n".join(aligned(facts))
    if placement := found.placement:
        yield "\nPlacement"
        for place in placement.places:
            room = "" if place.capacity is None else f" of {size(place.capacity)}"
            holds = ", ".join(f"{name} {size(count)}" for name, count in place.holds.items()) or "nothing"
            yield harmless(f"{place.name}: {size(place.used)}{room}: {holds}")
        if placement.fetched:
            yield f"fetched for a request, on average: {size(placement.fetched)}, {placement.seconds:.2f} s"
    allowed = [difference for difference in found.differences if difference.allowed]
    for title, some in (("Apart", found.refused), ("Different, and allowed", allowed)):
        if some:
            yield f"\n{title}"
        for difference in some[:SHOWN]:
            why = f" ({difference.allowed})" if difference.allowed else ""
            yield harmless(clipped(f"{difference}{why}", 3 * width))
        if len(some) > SHOWN:
            yield f"and {len(some) - SHOWN} more: see --json"
    if found.notes:
        yield "\n" + "\n".join(harmless(note) for note in found.notes)
