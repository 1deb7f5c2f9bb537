"""Test prompts of one length without their beginnings and ends, so that a router is judged by their content.

Every prompt is cut to as many tokens from its middle, without templates, greetings and differences of length. Knows
nothing about routers.
"""

from typing import Any

from moesaic.data.batches import Tokens
from moesaic.errors import DataError
from moesaic.evaluate.routers import router_report
from moesaic.evaluate.statistics import UNSEEN
from moesaic.kinds.gates import Weights
from moesaic.recipe import Recipe
from moesaic.tasks.task import Task


def matched_rows(task: Task[Tokens]) -> dict[str, list[Tokens]]:
    """The middles of the test prompts, by domain, of the recipe's length if it has one. Shorter prompts are left out.

    Tokens after a middle are not read. Raises DataError for a domain without a prompt of that length.
    """
    size = task.recipe.evaluate.matched
    if size is None:
        return {}
    found = {}
    for domain, rows in task.test_rows.items():
        if domain == UNSEEN:
            continue
        found[domain] = [middle(row, size) for row in rows if row.prompt >= size]
        if not found[domain]:
            longest = max(row.prompt for row in rows)
            what, hint = f"no test prompt of '{domain}' is so long", f"its longest has {longest} tokens"
            raise DataError(what, field="evaluate.matched", expected=f"<= {longest}", got=size, hint=hint)
    return found


def middle(row: Tokens, size: int) -> Tokens:
    """A prompt of `size` tokens from the middle of another."""
    start = (row.prompt - size) // 2
    return Tokens([*row.ids[start : start + size], row.ids[row.prompt]], size, row.group)


def matched_report(recipe: Recipe, rows: dict[str, list[Tokens]], weights: Weights) -> dict[str, Any]:
    """A router's accuracy on these rows, from its weights for the recipe's experts; no expert answers the middles."""
    names = [*recipe.experts]
    labels = [names.index(domain) for domain, some in rows.items() for _ in some]
    chosen = [
        int(best) if one > 0 else -1 for best, one in zip(weights.argmax(-1), weights.sum(-1).tolist(), strict=True)
    ]
    report = router_report(labels, chosen, weights.clamp_max(1).double().numpy(), names)
    sizes = {domain: len(some) for domain, some in rows.items()}
    return {"tokens": recipe.evaluate.matched, "rows": sizes} | {key: report[key] for key in ("accuracy", "macro_f1")}
