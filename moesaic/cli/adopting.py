"""`adopt`: experts and prompts as they are named on the command line in, what was made of them out.

Knows nothing about adapters or routers.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.cli.printing import aligned, harmless, stdout
from moesaic.errors import RecipeError
from moesaic.sections.places import name_at

if TYPE_CHECKING:
    from moesaic.adoption.adopting import Adoption

NAMED = re.compile(r"([^=/\\]+)=(.+)", re.DOTALL)


def adopted(
    experts: list[str],
    base: str | None,
    out: Path | None,
    into: Path | None,
    prompts: list[str],
    changes: dict[str, list[str]],
    kind: str | None,
    rank: int | None,
    ignore_rest: bool,
    name: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a mixture in `out`, or change the one in `into`, and say how sure its router is.

    `changes`: the names to drop, disable and enable.
    """
    if (out is None) == (into is None):
        hint = "--base BASE --out DIR makes a mixture, --into DIR changes one"
        raise RecipeError("one of the two is needed", field="--out, --into", hint=hint)
    wrong: dict[str, Any] = {f"--{one}": some for one, some in changes.items()}
    wrong = {"--base": base, "--name": name, "--kind": kind} if into else wrong
    if idle := [option for option, value in wrong.items() if value]:
        raise RecipeError(f"has no meaning with {'--into' if into else '--out'}", field=", ".join(idle))
    found: dict[str, Any] = {"experts": folders(experts), "prompts": files(prompts)}
    found |= {} if rank is None else {"rank": rank}
    found |= {"ignore_rest": True} if ignore_rest else {}
    if out and base is None:
        raise RecipeError("missing", field="--base", expected="the place of the model that the experts share")
    if out and not experts:
        raise RecipeError("no experts", expected="adapters or fine-tuned models, as PATH or NAME=PATH")

    import moesaic
    from moesaic.cli.progress import shown

    with shown(quiet) as progress:
        if into:
            drop, disable, enable = (changes[one] for one in ("drop", "disable", "enable"))
            made = moesaic.amend(into, **found, drop=drop, disable=disable, enable=enable, progress=progress)
        else:
            found |= {} if kind is None else {"kind": kind}
            made = moesaic.adopt(**found, base=base or "", out=out or Path(), name=name, progress=progress)
    if as_json:
        print(json.dumps({**asdict(made), "folder": str(made.folder)}, indent=2, ensure_ascii=False))
    else:
        stdout().print(harmless("\n".join(summary(made, into or out or Path()))))


def merged(models: list[str], weights: str | None, only: str | None) -> Path:
    """Average models into the folder that is named last."""
    *some, out = models
    try:
        given = None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise RecipeError("not numbers", field="--weights", expected="as 1,1,2", got=weights) from None
    import moesaic

    return moesaic.merge(some, out, weights=given, only=only)


def folders(experts: list[str]) -> dict[str, str] | list[str]:
    """NAME=PATH or PATH, all of one kind or mixed; a folder that is there is never a name."""
    if not any(NAMED.fullmatch(one) and not Path(one).exists() for one in experts):
        return experts
    found: dict[str, str] = {}
    for one in experts:
        match = None if Path(one).exists() else NAMED.fullmatch(one)
        path = match[2] if match else one
        name = match[1] if match else name_at(path)
        if name in found:
            raise RecipeError("given twice", field=name, hint="give each expert a name of its own: NAME=PATH")
        found[name] = path
    return found


def files(prompts: list[str]) -> dict[str, str]:
    """NAME=FILE of every expert's prompts."""
    found: dict[str, str] = {}
    for one in prompts:
        match = NAMED.fullmatch(one)
        if not match or match[1] in found:
            what = "given twice" if match else "not prompts of an expert"
            raise RecipeError(what, field="--prompts", expected="NAME=FILE", got=one)
        found[match[1]] = match[2]
    return found


def summary(made: "Adoption", at: Path) -> Iterator[str]:
    """What stands now, and how far its router can be trusted."""
    router = made.router
    yield f"adopted {', '.join(made.names)}"
    yield from aligned(((name, described(facts, name in made.disabled)) for name, facts in made.experts.items()), "  ")
    yield f"router: {router['kind']} on {router['feature']}"
    if router["kind"] == "linear":
        right, of = sum(router["right"].values()), sum(router["of"].values())
        yield f"  sends {right} of {of} prompts that it was made without to their own expert ({router['accuracy']:.1%})"
        for name, count in router["of"].items():
            if router["right"][name] < count:
                yield f"  of {name}, {router['right'][name]} of {count}"
    else:
        one, other = router["alike"]
        yield "  made from the weights alone and not tested: ten prompts of each expert (--prompts) make a surer one"
        yield f"  the most alike experts are {one} and {other}: {router['overlap']:.2f} (0: unrelated, 1: the same)"
    yield f"mixture: {made.folder}"
    yield f'Next: moesaic generate {at} "..."'


def described(facts: dict[str, Any], disabled: bool) -> str:
    """An expert's facts on one line."""
    rank = [f"rank {facts['rank']}"] if "rank" in facts else []
    parts = [facts["from"], *rank, f"{facts['parameters']:,} parameters"]
    if "kept" in facts:
        parts.append(
            f"{facts['kept']:.1%} of the change in the linears kept, {facts['outside']:.1%} of it lies outside"
        )
    if facts.get("ignored"):
        parts.append(f"{facts['ignored']} tensors that differ elsewhere ignored")
    if not facts["verified"]:
        parts.append("declared, unverified")
    if disabled:
        parts.append("disabled")
    return ", ".join(parts)
