"""`classify`: prints the label of a text, its probability and the expert that answered.

Knows nothing about models.
"""

from moesaic.cli.printing import aligned, harmless, json_text, routed, stdout
from moesaic.generate.classify import Classification

SHOWN = 5


def show_label(found: Classification, as_json: bool) -> None:
    """Print a label, and the most probable labels."""
    decision = found.routing
    routing = {"chosen": decision.chosen, "weights": decision.weights, "routing": decision.probabilities}
    if as_json:
        facts = {"label": found.label, "task": found.task, "probability": found.probability, **routing}
        print(json_text(facts | {"probabilities": found.probabilities}))
        return
    console = stdout()
    console.print(harmless(f"{found.label} ({found.task}, {found.probability:.1%})"), style="bold")
    likely = sorted(found.probabilities.items(), key=lambda item: -item[1])[:SHOWN]
    console.print("\n".join(aligned(((harmless(name), f"{share:.1%}") for name, share in likely), "  ")))
    console.print(f"[{routed(found.routing.chosen, found.routing.probabilities)}]", style="dim", markup=False)
