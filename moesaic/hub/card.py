"""Model cards: what a repository of the hub says of itself, its README.md, from plain values.

Texts stay text, whatever they spell. Knows nothing about tensors or folders, nor how a card gets to the hub.
"""

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from moesaic import __version__
from moesaic.errors import WeightsError, clipped, printable
from moesaic.sections import document as yaml
from moesaic.sections.places import HubId, hub_id

LONGEST = 1000
"""Characters of one text on a card."""

_MARKS = re.compile(r"[\\`*_{}\[\]<>#|~&$@^=]|(?<=www)\.|(?<=WWW)\.|:(?=//)|!(?=\[)", re.ASCII)
"""What Markdown, as the hub renders it, would take for more than text within a line."""


def model_card(target: HubId, *, license: str | None, origin: Mapping[str, str], **values: Any) -> str:
    """The card of a plain model. `values`: family, parameters, and the auto_class of transformers that opens it."""
    front = front_matter(target, "transformers", [values["family"]], origin, license)
    return filled_in("model.md", target, front, origin=origin, **values)


def mixture_card(target: HubId, *, license: str | None, base: Mapping[str, Any], **values: Any) -> str:
    """The card of a mixture. `base`: parameters, fingerprint, origin. `values`: its name, the experts (each name, kind,
    rank, parameters, origin, disabled), the manifest of the router, whether it gives labels, and the evaluation or {}.
    """
    kinds = sorted({one["kind"] for one in values["experts"]})
    front = front_matter(target, "moesaic", ["mixture-of-experts", *kinds], base["origin"], license)
    return filled_in("mixture.md", target, front, base=base, **values)


def front_matter(target: HubId, library: str, tags: list[str], origin: Mapping[str, str], license: str | None) -> str:
    """What the hub reads of a card, as YAML: no text in it spans lines, so none can end it."""
    facts: dict[str, Any] = {"library_name": library}
    if license is not None:
        facts["license"] = plain(license)
    if (base := hub_id(origin.get("place", ""))) and base.name != target.name:
        facts["base_model"] = base.name
    return yaml.dump({**facts, "tags": [*map(plain, tags), "moesaic"]}).strip()


def filled_in(template: str, target: HubId, front: str, **values: Any) -> str:
    """A template filled in: every text escaped, unless a filter has made it harmless; a missing value is an error."""
    from jinja2 import PackageLoader, StrictUndefined, UndefinedError
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        finalize=lambda value: value if isinstance(value, Markup) else escaped(value),
        loader=PackageLoader("moesaic.hub"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    values |= {"target": target, "front": Markup(front), "version": __version__}
    try:
        return environment.get_template(template).render(**values)
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise WeightsError("not what a manifest or an evaluation holds", path=str(target), got=got) from error


def plain(value: Any) -> str:
    """`value` as one line of what can be shown."""
    return printable(clipped(str(value), LONGEST))


def escaped(value: Any) -> Markup:
    """`value` as Markdown that shows it as it is."""
    return Markup(_MARKS.sub(r"\\\g<0>", plain(value)))


def code(value: Any) -> Markup:
    """`value` in the type of code, also in a cell of a table."""
    return Markup("`{}`").format(Markup(plain(value).replace("`", "'").replace("|", "\\|")))


def bare(value: str) -> Markup:
    """A name within code, which is one word of a hub id or of Python."""
    if not re.fullmatch(r"[\w./-]+", value, re.ASCII):
        raise ValueError(f"not a name: {value!r}")
    return Markup(value)


def whence(origin: Mapping[str, str]) -> Markup:
    """From where a part is, and of which commit, as far as that is known."""
    found = (Markup(text).format(code(origin[fact])) for fact, text in WHENCE.items() if fact in origin)
    return Markup("").join(found)


WHENCE = {"place": ", from {}", "commit": " at commit {}"}


FILTERS = {
    "code": code,
    "bare": bare,
    "whence": whence,
    "number": lambda number: Markup(f"{number:,d}"),
    "figure": lambda number: Markup(f"{number:.3f}"),
    "signed": lambda number: Markup(f"{number:+.3f}"),
    "share": lambda number: Markup(f"{number:.1%}"),
    "level": lambda number: Markup(f"{100 * number:g}%"),
}
"""Each makes what it is given harmless; of a number that is none it raises ValueError."""
