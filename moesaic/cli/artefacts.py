"""`inspect`: prints the facts about an artefact, as text or as JSON.

Knows nothing about how the facts are found: see `artefacts.inspect`. Imports torch only to count tensors, to route a
text, or to read a trace.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from moesaic.artefacts.inspect import Artefact, inspect
from moesaic.artefacts.manifest_words import said
from moesaic.cli.printing import aligned, harmless, json_text, routed, router_in_words, size, stdout
from moesaic.cli.traces import show_trace
from moesaic.errors import RecipeError
from moesaic.hub.locate import origins_in

FOREIGN_KEYS = {  # the most informative keys of a foreign configuration
    "PEFT adapter": ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules"),
    "TT-LoRA adapter": ("rank", "alpha"),
    "Hugging Face model": (
        *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("max_position_embeddings", "torch_dtype"),
    ),
}


def show(
    place: str,
    text: str | None,
    as_json: bool,
    raw_text: bool = False,
    **how: Any,
) -> None:
    """Print the facts about the artefact at `place`, and how it routes `text` when it is loaded as `how` says."""
    path = Path(place)
    if path.suffix == ".jsonl" and path.is_file():
        if text is not None:
            raise RecipeError("a trace routes no text", path=path, field="text", hint="name a mixture's folder")
        show_trace(path, as_json)
        return
    found, routing = inspect(place), None
    if text is not None:
        import moesaic

        routing = moesaic.load(place, **how).route(text, raw=raw_text)
    if as_json:
        shown = {"routing": {"chosen": routing.chosen, "weights": routing.weights}} if routing else {}
        print(json_text(raw(found) | shown, indent=2))
        return
    console = stdout()
    console.print(harmless("\n".join(summary(found))))
    if routing:
        console.print(f"\nrouted to {routed(routing.chosen, routing.weights)}")


def raw(found: Artefact) -> dict[str, Any]:
    parts = {name: raw(part) for name, part in found.parts.items()}
    own = {"kind": found.kind, "path": str(found.folder), "verified": found.verified, "facts": found.facts}
    return own | ({"parts": parts} if parts else {})


def summary(found: Artefact, label: str = "", indent: str = "") -> Iterator[str]:
    """Lines with the most important facts of an artefact and, indented, of its parts.

    A folder of a mixture alone, without recipe and evaluation, is no run: its lines are those of the mixture.
    """
    if found.kind == "run" and not found.facts and not (found.folder / "recipe.yaml").is_file():
        found = found.parts["mixture"]
    yield indent + (label or f"{found.kind} {found.facts.get('name', '')}".strip())
    rows = [*DESCRIBE.get(found.kind, declared)(found), *measured(found)]
    yield from aligned([*rows, *([] if label else vouched(found))], f"{indent}  ")
    if not label and (files := found.facts.get("files") if found.verified else sizes(found.folder)):
        yield f"{indent}  files"
        yield from aligned(((name, size(facts["bytes"])) for name, facts in files.items()), f"{indent}    ")
    for name, part in found.parts.items():
        yield ""
        yield from summary(part, "" if found.kind == "run" else name, f"{indent}  ")


Rows = Iterator[tuple[str, str]]
WHERE = {
    "linear": "at every linear layer with an adapter",
    "ffn": "at every feed-forward block",
    "model": "between whole models",
}
"""Every site of the kinds, in their order, which is not asked: the kinds import torch."""
LEVELS = ("sequence", "token")
OWN = {"ffn": "feed-forward blocks", "model": "a whole model"}


def run(found: Artefact) -> Rows:
    """Verdict, domains, accuracy of the router and times of an evaluated run."""
    from moesaic.evaluate.wording import spoken

    facts = found.facts
    if not facts:
        yield "evaluated", "not yet"
        return
    yield "verdict", spoken(facts)
    yield "domains", ", ".join(facts["domains"])
    if "accuracy" in facts["router"]:
        yield "accuracy", f"{facts['router']['accuracy']:.1%} of test rows routed to their own expert"
    stages = facts["timing"].get("stages", {})
    yield "time", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items()) or "unknown"


def mixture(found: Artefact) -> Rows:
    """Experts, routing, size, and the origins of parts from elsewhere."""
    facts, parts = found.facts, found.parts
    yield "experts", ", ".join(parts["router"].facts["experts"])
    site, level = said(found.folder, facts, "site", list(WHERE)), said(found.folder, facts, "level", LEVELS)
    yield "routed", f"{level} by {level}, {WHERE[site]}"
    if disabled := facts.get("disabled"):
        yield "disabled", f"{', '.join(disabled)}: never chosen by the router, used only by name"
    experts = sum(own_parameters(parts[f"expert {name}"]) for name in facts["experts"])
    if problem := parts["base"].facts.get("problem"):
        yield "base", problem
        yield "parameters", f"{experts:,} of the experts"
    else:
        yield "parameters", f"{own_parameters(parts['base']):,} of the base, {experts:,} of the experts"
    if base := facts.get("base"):
        yield "base at", f"{base['place']}, which this folder refers to"
    for name, origin in origins_in(facts, found.folder).items():
        yield f"{name} from", " at ".join(origin.values())


def base(found: Artefact) -> Rows:
    yield "parameters", f"{own_parameters(found):,}"
    if fingerprint := found.facts.get("fingerprint"):
        yield "fingerprint", short(fingerprint)


def expert(found: Artefact) -> Rows:
    """Kind, layers, size, head and base of an expert."""
    facts = found.facts
    if {"rank", "alpha", "targets"} <= facts.keys():
        yield "adapter", f"{facts['adapter']}, rank {facts['rank']}, alpha {facts['alpha']:g}"
        yield "targets", ", ".join(facts["targets"])
    else:
        yield "kind", OWN.get(facts["adapter"], facts["adapter"])
    if "layers" in facts:
        yield "layers", ", ".join(map(str, facts["layers"]))
    yield "parameters", f"{facts['parameters']:,}"
    if head := facts.get("head"):
        labels, how = head["labels"], "untrained" if head.get("trained") is False else "trained"
        shown = ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
        yield "head", f"{head['parameters']:,} parameters, {how}; labels {shown}"
    if shared := facts.get("shared"):
        yield "shared", f"{len(shared)} of its tensors equal the base's"
    yield "fingerprint", f"{short(facts['fingerprint'])}, over base {short(facts['base_fingerprint'])}"


def router(found: Artefact) -> Rows:
    facts = found.facts
    selection = facts["selection"]
    selected = f" of {selection['k']}" if selection["k"] else ""
    yield "router", f"{router_in_words(facts['router'], facts['feature'])}, {selection['kind']}{selected}"
    yield "experts", ", ".join(facts["experts"])
    yield "abstains", abstention(facts)
    yield "over base", short(facts["base_fingerprint"])


def abstention(facts: dict[str, Any]) -> str:
    """Say when a router leaves a prompt to the base, and how often it did on validation prompts."""
    if facts["router"] == "keyword" and (all(facts["shape"]["words"]) or not facts["shape"].get("first")):
        return "where a prompt has no keyword of an expert"
    if "guard" not in facts:
        return "never: every prompt goes to an expert"
    said = f"where a prompt belongs to an expert with a probability below {facts['guard']['least']:.3f}"
    metrics = facts.get("metrics", {})
    for key, whose in {"abstained_neutral": "neutral text", "abstained_own": "the experts' own prompts"}.items():
        share = metrics.get(f"validation_{key}", metrics.get(key))
        said += "" if share is None else f"; {share:.1%} of {whose}"
    return said


def encoder(found: Artefact) -> Rows:
    facts = found.facts
    if "family" in facts:
        pools = {"mean": "the mean of its states", "cls": "the state of its first token"}
        pooled = pools.get(facts.get("pool", ""), "states pooled otherwise")
        unit = " at unit length" if facts.get("normalise") else ""
        yield "encoder", f"{facts['family']}, {pooled}{unit}, of {facts.get('limit', 'unknown')} tokens at most"
    if "parameters" in facts:
        yield "parameters", f"{facts['parameters']:,}"
    yield "fingerprint", short(facts["fingerprint"])


def declared(found: Artefact) -> Rows:
    keys = FOREIGN_KEYS.get(found.kind, ())
    for key in (key for key in keys if found.facts.get(key) is not None):
        value = found.facts[key]
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if count := own_parameters(found):
        yield "parameters", f"{count:,}"


def measured(found: Artefact) -> Rows:
    if found.verified and (metrics := found.facts.get("metrics")):
        yield "metrics", ", ".join(measure(name, value) for name, value in metrics.items())


def measure(name: str, value: float) -> str:
    """Write a metric with its value; an adopted router has its accuracy as a percentage."""
    return f"accuracy on held-out prompts {value:.1%}" if name == "accuracy_held_out" else f"{name} {value:.4g}"


def vouched(found: Artefact) -> Rows:
    if not found.verified:
        yield "verified", "no: without a manifest, only its own configuration says what it is"
    elif found.kind != "run":
        seed = found.facts.get("seed")
        yield "made by", f"moesaic {found.facts['package_version']}" + ("" if seed is None else f", seed {seed}")
        yield "verified", "yes: every file has the hash in its manifest"


DESCRIBE = {"run": run, "mixture": mixture, "base": base, "expert": expert, "router": router, "encoder": encoder}


def own_parameters(part: Artefact) -> int:
    """The parameters of a base or an expert by its manifest or, where it has none, by the headers of its files."""
    facts = part.facts if part.verified else {}
    count = facts.get("own_parameters", facts.get("parameters"))
    if count is None and (shapes := facts.get("shapes")):
        return sum(map(prod, shapes.values()))
    if count is not None:
        return count
    from moesaic.interop.outline import weighed

    return sum(weighed(part.folder).values())


def sizes(folder: Path) -> dict[str, dict[str, int]]:
    return {path.name: {"bytes": path.stat().st_size} for path in sorted(folder.iterdir()) if path.is_file()}


def short(fingerprint: str) -> str:
    return fingerprint[:12]
