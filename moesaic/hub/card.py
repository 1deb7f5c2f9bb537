"""Model cards: the README.md of a repository of the hub, made from plain values.

Every text is escaped. Knows nothing about tensors or folders, nor how a card gets to the hub.
"""

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from moesaic import __version__
from moesaic.errors import WeightsError, clipped, printable
from moesaic.sections import document as yaml
from moesaic.sections.places import HubId, hub_id

LONGEST = 1000  # characters of one text on a card
_MARKS = re.compile(r"[\\`*_{}\[\]<>#|~&$@^=]|(?<=www)\.|(?<=WWW)\.|:(?=//)|!(?=\[)", re.ASCII)
"""Characters with a meaning in the hub's Markdown, within a line."""


def model_card(target: HubId, *, license: str | None, origin: Mapping[str, str], **values: Any) -> str:
    """The card of a plain model. `values`: family, parameters, and the auto_class of transformers that opens it."""
    front = front_matter(target, "transformers", [values["family"]], origin, license)
    return filled_in("model.md", target, front, origin=origin, **values)


def mixture_card(target: HubId, *, license: str | None, base: Mapping[str, Any], **values: Any) -> str:
    """The card of a mixture. `base`: parameters, fingerprint, origin. `values`: name, experts (name, kind, rank,
    parameters, origin and disabled of each), router (its manifest), labels (whether it classifies), evaluation (or {}).
    """
    kinds = sorted({one["kind"] for one in values["experts"]})
    front = front_matter(target, "moesaic", ["mixture-of-experts", *kinds], base["origin"], license)
    return filled_in("mixture.md", target, front, base=base, **values)


def front_matter(target: HubId, library: str, tags: list[str], origin: Mapping[str, str], license: str | None) -> str:
    """The metadata that the hub reads, as YAML: no text in it spans lines, so none can end it."""
    facts: dict[str, Any] = {"library_name": library}
    if license is not None:
        facts["license"] = plain(license)
    if (base := hub_id(origin.get("place", ""))) and base.name != target.name:
        facts["base_model"] = base.name
    return yaml.dump({**facts, "tags": [*map(plain, tags), "moesaic"]}).strip()


def filled_in(template: str, target: HubId, front: str, **values: Any) -> str:
    """Render a template, every text escaped unless a filter has made it harmless; WeightsError for a missing value."""
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
        raise WeightsError("a manifest or an evaluation has unexpected values", path=str(target), got=got) from error


def plain(value: Any) -> str:
    return printable(clipped(str(value), LONGEST))


def escaped(value: Any) -> Markup:
    return Markup(_MARKS.sub(r"\\\g<0>", plain(value)))


def code(value: Any) -> Markup:
    """`value` as code in Markdown, also within a cell of a table."""
    return Markup("`{}`").format(Markup(plain(value).replace("`", "'").replace("|", "\\|")))


def bare(value: str) -> Markup:
    """A name of the hub or of Python, for use within code; ValueError for any other text."""
    if not re.fullmatch(r"[\w./-]+", value, re.ASCII):
        raise ValueError(f"not a name: {value!r}")
    return Markup(value)


def whence(origin: Mapping[str, str]) -> Markup:
    """The place and commit that a part came from, as far as they are known."""
    texts = {"place": ", from {}", "commit": " at commit {}"}
    return Markup("").join(Markup(text).format(code(origin[fact])) for fact, text in texts.items() if fact in origin)


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
"""Filters that make a value harmless; those of numbers raise ValueError for anything else."""
