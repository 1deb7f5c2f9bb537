"""Test prompts that are alike in length and in how they begin and end, so that a router is judged by what they say.

Of every prompt as many tokens from its middle: no template, no greeting and no length is left to tell domains by.
Knows nothing about routers.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from moesaic.data.batches import Tokens
from moesaic.errors import DataError
from moesaic.evaluate.routers import router_report
from moesaic.evaluate.statistics import UNSEEN
from moesaic.recipe import Recipe
from moesaic.tasks.task import Task


def matched_rows(task: Task[Tokens]) -> dict[str, list[Tokens]]:
    """The middles of the test prompts, by domain; nothing where the recipe does not ask. Shorter prompts are left out.

    What stands behind a middle is not read. Raises DataError where a domain has no prompt of that length.
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
    """As many tokens from the middle of a prompt, as a prompt of their own."""
    start = (row.prompt - size) // 2
    return Tokens([*row.ids[start : start + size], row.ids[row.prompt]], size, row.group)


def matched_report(recipe: Recipe, rows: dict[str, list[Tokens]], weights: Float[Tensor, "n e"]) -> dict[str, Any]:
    """How a router did on these rows, its weights of the recipe's experts; by it alone, as nobody answers middles."""
    names = [*recipe.experts]
    labels = [names.index(domain) for domain, some in rows.items() for _ in some]
    chosen = [
        int(best) if one > 0 else -1 for best, one in zip(weights.argmax(-1), weights.sum(-1).tolist(), strict=True)
    ]
    told = router_report(labels, chosen, weights.clamp_max(1).double().numpy(), names)
    sizes = {domain: len(some) for domain, some in rows.items()}
    return {"tokens": recipe.evaluate.matched, "rows": sizes} | {key: told[key] for key in ("accuracy", "macro_f1")}
