"""Five tasks learned one after another by several strategies: the figures of `moesaic continual` as a page.

Knows nothing of what a run computes: reads its continual.json.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.mixtures import QUICK
from benchmarks.page import RECIPES, Options, Page
from moesaic import stages
from moesaic.recipe import read as read_recipe

RECIPE = RECIPES / "continual.yaml"


def page(options: Options) -> Page:
    """Make the run, or take it where it is finished, and write its figures."""
    overrides = [f"data_root={options.shared / 'data'}", *(QUICK if options.quick else ())]
    found = stages.continual(read_recipe(RECIPE, overrides), options.runs / "continual")
    how = "The run by hand: `moesaic continual recipes/continual.yaml data_root=shared/data`"
    return Page(f"{how}\n\n{report(found)}", {"continual": found["timing"]["machine"]})


def report(found: Mapping[str, Any]) -> str:
    """The sentence, the figures with their intervals, and the matrix of every strategy."""
    tasks, strategies, definitions = found["tasks"], found["strategies"], found["definitions"]
    names = [name for name in definitions if name in strategies["oracle"]["figures"]]
    lines = [
        found["sentence"],
        "",
        f"One training run of each strategy, seed {found['seed']}: the 95% intervals, paired bootstraps over the test",
        "rows, do not cover the training. `isolated` and `oracle` have the parameters of an expert for each task,",
        "`sequential` and `replay` those of one. All strategies make the same number of steps on each task; `replay`",
        f"trains on {found['replayed']:.0%} of the rows of each earlier task again. The tasks: {', '.join(tasks)}.",
        "",
        table(
            ["strategy", *(name.replace("_", " ") for name in names)],
            [
                [strategy, *(estimated(some["figures"][name], "" if name == "OP" else "+") for name in names)]
                for strategy, some in strategies.items()
            ],
        ),
        "",
        *(f"- {name.replace('_', ' ')}: {definitions[name]}" for name in names),
        "",
        "OP of `isolated` above that of each other strategy (above 0 it is better):",
        "",
        *(f"- {name}: {estimated(one, '+')}" for name, one in found["gain_of_isolated_over"].items()),
    ]
    for strategy, some in strategies.items():
        rows = [["no task", *figures(found["before"]["nats"])]]
        rows += [[f"after {task}", *figures(row)] for task, row in zip(tasks, some["nats"], strict=True)]
        lines += ["", f"`{strategy}`, nats per token on each task:", "", table(["", *tasks], rows)]
    routed = ", ".join(f"{share:.1%}" for share in found["router_accuracy"])
    lines += [
        "",
        f"Prompts of the tasks so far that the router of `isolated` sends to their own expert, by task: {routed}.",
    ]
    return "\n".join([*lines, ""])


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figures(row: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in row]


def estimated(one: Mapping[str, Any], sign: str) -> str:
    low, high = one["interval"]
    return f"{one['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
