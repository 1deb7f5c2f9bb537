"""`adopt`, `merge` and `upcycle`: reads experts and prompts from the command line, and prints the result.

Knows nothing about adapters or routers.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.cli.printing import aligned, harmless, json_text, router_in_words, stdout
from moesaic.errors import RecipeError
from moesaic.sections.places import name_at

if TYPE_CHECKING:
    from moesaic.adoption.adopting import Adoption

NAMED = re.compile(r"([^=/\\]+)=(.+)", re.DOTALL)


def adopted(
    out: Path | None,
    into: Path | None,
    common: Mapping[str, Any],
    new: Mapping[str, Any],
    changes: Mapping[str, Any],
    quiet: bool,
) -> "Adoption":
    """Make a mixture in `out`, or change the one in `into`, with the options of the command line.

    `common`: options of both, with experts and prompts as they are typed; `new`: those of --out; `changes`: those of
    --into. Raises RecipeError for options that do not go together.
    """
    if (out is None) == (into is None):
        hint = "--base BASE --out DIR makes a mixture, --into DIR changes one"
        raise RecipeError("exactly one of the two is required", field="--out, --into", hint=hint)
    if idle := [f"--{key}" for key, value in (new if into else changes).items() if value]:
        raise RecipeError(f"has no meaning with {'--into' if into else '--out'}", field=", ".join(idle))
    found = {**common, "experts": folders(common["experts"]), "prompts": files(common["prompts"])}
    found["groups"] = divided(common["groups"])
    if out and common["base"] is None:
        raise RecipeError("missing", field="--base", expected="a folder or org/name of the experts' base")
    if out and not common["experts"]:
        raise RecipeError("no experts", expected="adapters or fine-tuned models, as PATH or NAME=PATH")

    import moesaic
    from moesaic.cli.progress import shown

    settings = {key: value for key, value in {**found, **(changes if into else new)}.items() if value is not None}
    with shown(quiet) as progress:
        if into:
            return moesaic.amend(into, **settings, progress=progress)
        return moesaic.adopt(**settings, out=out or Path(), progress=progress)


def show_adoption(made: "Adoption", at: Path | None, as_json: bool) -> None:
    """Print the experts of a mixture in the folder `at`, and the accuracy of its router."""
    if as_json:
        print(json_text({**asdict(made), "folder": str(made.folder)}, indent=2))
    else:
        stdout().print(harmless("\n".join(summary(made, at or made.folder))))


def abstention(typed: str | None) -> str | float | None:
    """Read the value of --abstain."""
    if typed is None or typed in ("auto", "off"):
        return typed
    try:
        least = float(typed)
    except ValueError:
        least = 0.0
    if not 0 < least < 1:
        expected = "auto, off, or a probability between 0 and 1"
        raise RecipeError("unknown value", field="--abstain", expected=expected, got=typed)
    return least


def merged(models: list[str], weights: str | None, only: str | None) -> Path:
    *some, out = models
    try:
        given = None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise RecipeError("not numbers", field="--weights", expected="numbers such as 1,1,2", got=weights) from None
    import moesaic

    return moesaic.merge(some, out, weights=given, only=only)


def upcycled(models: list[str], prompts: list[str], given: dict[str, Any]) -> Path:
    *some, out = models
    if not some:
        raise RecipeError("no model to make experts of", expected="a model, and the folder to write")
    import moesaic

    return moesaic.upcycle(folders(some), out, prompts=files(prompts), **given)


def folders(experts: list[str]) -> dict[str, str] | list[str]:
    """Split NAME=PATH into name -> path, unless all are a bare PATH; an existing folder is always a PATH."""
    if not any(NAMED.fullmatch(one) and not Path(one).exists() for one in experts):
        return experts
    found: dict[str, str] = {}
    for one in experts:
        match = None if Path(one).exists() else NAMED.fullmatch(one)
        path = match[2] if match else one
        name = match[1] if match else name_at(path)
        if name in found:
            raise RecipeError("given twice", field=name, hint="give each expert its own name: NAME=PATH")
        found[name] = path
    return found


def files(prompts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in prompts:
        match = NAMED.fullmatch(one)
        if not match or match[1] in found:
            what = "given twice" if match else "not prompts of an expert"
            raise RecipeError(what, field="--prompts", expected="NAME=FILE", got=one)
        found[match[1]] = match[2]
    return found


def divided(groups: list[str]) -> dict[str, list[str]]:
    """Read the values of --group."""
    found: dict[str, list[str]] = {}
    for one in groups:
        name, equals, experts = one.partition("=")
        if not name or not equals or not experts or name in found:
            what = "given twice" if name in found else "not a group of experts"
            raise RecipeError(what, field="--group", expected="NAME=EXPERT,EXPERT", got=one)
        found[name] = experts.split(",")
    return found


def summary(made: "Adoption", at: Path) -> Iterator[str]:
    """Lines about the experts and how well the router sends prompts to them."""
    router = made.router
    yield f"adopted {', '.join(made.names)}"
    yield from aligned(((name, described(facts, name in made.disabled)) for name, facts in made.experts.items()), "  ")
    yield f"router: {router_in_words(router['kind'], router['feature'])}"
    if "groups" in router:
        yield from (f"  {group}: {', '.join(names)}" for group, names in router["groups"].items())
    if "right" in router:
        enabled = [name for name in made.names if name not in made.disabled]
        right, of = (sum(router[key][name] for name in enabled) for key in ("right", "of"))
        whose = " of the enabled experts" if made.disabled else ""
        yield f"  sends {right} of {of} held-out prompts{whose} to their own expert ({right / of:.1%})"
        for name in enabled:
            if router["right"][name] < router["of"][name]:
                yield f"  of {name}, {router['right'][name]} of {router['of'][name]}"
        if "abstained_neutral" in router:
            yield f"  leaves {router['abstained_neutral']:.0%} of prompts that belong to no expert to the base, and"
            yield f"  {router['abstained_own']:.0%} of the experts' own (both of prompts that it did not learn from)"
        if "corrected" in router:
            counts = ", ".join(f"{number} of {name}" for name, number in router["corrected"].items())
            yield f"  learned from corrected prompts, too: {counts}"
        if made.disabled:
            yield f"  sends prompts of {', '.join(made.disabled)} to other experts"
    else:
        one, other = router["alike"]
        yield "  made from weights alone and not tested: ten prompts for each expert (--prompts) make a better router"
        yield f"  the most similar experts are {one} and {other}: {router['overlap']:.2f} (0: unrelated, 1: equal)"
    if made.nats:
        yield "nats a token of the prompts of each expert, before and after:"
        yield from aligned(((name, changed(*both)) for name, both in made.nats.items()), "  ")
    yield f"mixture: {made.folder}"
    yield f'Next: moesaic generate {at} "..."'


def changed(before: float | None, after: float) -> str:
    """Two figures and their difference; without a first one the second alone."""
    return f"{after:.3f}" if before is None else f"{before:.3f} {after:.3f} ({after - before:+.3f})"


def described(facts: dict[str, Any], disabled: bool) -> str:
    """Describe an expert on one line."""
    rank = [f"rank {facts['rank']}"] if "rank" in facts else []
    parts = [facts["from"], *rank, f"{facts['parameters']:,} parameters"]
    if "kept" in facts:
        parts.append(
            f"{facts['kept']:.1%} of the change in the linears kept, {facts['outside']:.1%} of the change outside"
        )
    if facts.get("ignored"):
        parts.append(f"{facts['ignored']} tensors with other differences ignored")
    if not facts["verified"]:
        parts.append("base not checked")
    if disabled:
        parts.append("disabled")
    return ", ".join(parts)
