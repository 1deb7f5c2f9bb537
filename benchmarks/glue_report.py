"""The page ttlora_glue: tables of the cells that are finished, and of the mixtures.

Knows nothing about how they were computed.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks.page import Page
from moesaic.recipe import read as read_recipe

Found = Mapping[str, Any]
REFERENCE, GOAL = "LoRA r=16", 2.0
SHOWN = ("base", "joint", "joint_wide", "average", "uniform", "random", "keyword", "router", "oracle", "oracle_best")


def report(found: list[dict[str, Any]], wanted: int, runs: Mapping[str, list[Path]]) -> Page:
    """The whole page. `wanted`: cells there will be; `runs`: where a recipe's mixtures are."""
    mixtures = {name: [evaluation for at in some if (evaluation := read(at))] for name, some in runs.items()}
    parts = [how(found, wanted), compared(found), each(found)]
    parts += [summary(name, some, len(runs[name])) for name, some in mixtures.items()]
    parts += [mixture(name, run) for name, some in mixtures.items() for run in some]
    machines = {f"{cell['method']}, {cell['task']}, seed {cell['seed']}": cell["machine"] for cell in found}
    machines |= {at.name: one["timing"].get("machine") for some in runs.values() for at in some if (one := read(at))}
    return Page("\n\n".join(part for part in parts if part) + "\n", machines)


def read(run: Path) -> dict[str, Any] | None:
    """What a run came to, if it is finished."""
    at = run / "evaluation.json"
    if not at.is_file():
        return None
    recipe = read_recipe(run / "recipe.yaml")
    steps = {
        name: "of another run" if expert.path else expert.train.over(recipe.train).steps
        for name, expert in recipe.experts.items()
    }
    return {**json.loads(at.read_text()), "steps": steps}


def how(found: list[dict[str, Any]], wanted: int) -> str:
    """What was computed, and what was not."""
    if not found:
        return f"No cell of {wanted} is finished."
    settings, steps = found[0]["settings"], {cell["task"]: cell["steps"] for cell in found}
    rows = "; ".join(
        f"{task} {one['train']} / {one['validation']} / {one['test']}"
        for task, one in {cell["task"]: cell["rows"] for cell in found}.items()
    )
    partial = "" if len(found) == wanted else f" **{wanted - len(found)} of {wanted} cells are not finished.**"
    return (
        "all-MiniLM-L6-v2, adapters on every linear layer of its 6 blocks, tensor trains of two cores a side, the "
        f"inner one of factor 3 (cut finer: 8). Batches of {settings['batch']} rows of at most {settings['length']} "
        "tokens, AdamW, steps "
        f"{', '.join(f'{task} {number}' for task, number in steps.items())}. Of two rates a method takes, for all "
        "tasks and seeds, that of the better validation of cola with seed 0; of each training the state of best "
        "validation is scored."
        f"{partial}\n\nThe head is the same for all: one matrix and its bias on the mean over a row's states, trained "
        "with the rest and not counted. Seconds are those that one thread computed, peak memory is of the whole "
        "process. Scores are the first metric of each task (cola: Matthews correlation, the others accuracy) in "
        f"percent, means over seeds ± their deviation. Rows of training / validation / test: {rows}."
    )


def mean_of(found: Iterable[Found], key: str) -> float:
    return fmean(cell[key] for cell in found)


def compared(found: list[dict[str, Any]]) -> str:
    """A line for each method: cost, scores, and how far it is from LoRA of rank 16."""
    tasks, methods = dict.fromkeys(cell["task"] for cell in found), dict.fromkeys(cell["method"] for cell in found)
    done = [{cell["task"] for cell in found if cell["method"] == method} for method in methods]
    common = set.intersection(*done) if done else set()
    lines = [
        "## Methods",
        "",
        f"Seconds and memory: of tasks that all methods have finished ({', '.join(sorted(common)) or 'none'}).",
        "",
        f"| | parameters | of {REFERENCE} | s a training | peak MB | {' | '.join(tasks)} | mean | minus {REFERENCE} |",
        "|---" * (7 + len(tasks)) + "|",
    ]
    floors = [fmean(100 * cell["floor"] for cell in found if cell["task"] == task) for task in tasks]
    figures = " | ".join(f"{floor:.1f}" for floor in floors)
    lines.append(f"| the most frequent label | 0 | | | | {figures} | {fmean(floors):.1f} | |")
    means = dict[str, dict[str, float]]()
    for method in methods:
        some = [cell for cell in found if cell["method"] == method]
        by_task = {task: [100 * cell["score"] for cell in some if cell["task"] == task] for task in tasks}
        means[method] = {task: fmean(scores) for task, scores in by_task.items() if scores}
        alike = [cell for cell in some if cell["task"] in common] or some
        size = some[0]["parameters"]
        whole = next((cell["parameters"] for cell in found if cell["method"] == REFERENCE), None)
        # Tasks that either lacks say nothing about the difference.
        both = means[method].keys() & means.get(REFERENCE, {}).keys()
        ahead = fmean(means[method][task] - means[REFERENCE][task] for task in both) if both else None
        told = "" if ahead is None or len(both) == len(tasks) else f" ({', '.join(t for t in tasks if t in both)})"
        every = f"{fmean(means[method].values()):.1f}" if len(means[method]) == len(tasks) else "-"
        lines.append(
            f"| {method} | {size:,} | {f'{size / whole:.1%}' if whole else '-'} | {mean_of(alike, 'seconds'):.0f} "
            f"| {max(cell['megabytes'] for cell in alike):.0f} | {' | '.join(map(spread, by_task.values()))} "
            f"| {every} | {'-' if ahead is None else f'{ahead:+.1f}'}{told} |"
        )
    untaught = [
        task
        for task, floor in zip(tasks, floors, strict=True)
        if means.get(REFERENCE, {}).get(task, 100) < floor + GOAL
    ]
    if untaught:
        lines += [
            "",
            f"**So few steps teach {REFERENCE} nothing on {', '.join(untaught)}: it is no test of others there.**",
        ]
    return "\n".join([*lines, "", verdict(found, means)])


def spread(scores: list[float]) -> str:
    """The mean over seeds, and how far they scatter."""
    if not scores:
        return "-"
    return f"{fmean(scores):.1f}" + (f" ± {pstdev(scores):.1f}" if len(scores) > 1 else "")


def verdict(found: list[dict[str, Any]], means: Mapping[str, Mapping[str, float]]) -> str:
    """Whether a TT-LoRA with at most a twentieth of the numbers is within the goal."""
    sizes = {cell["method"]: cell["parameters"] for cell in found}
    lines = []
    for method, own in means.items():
        if not method.startswith("TT-LoRA") or REFERENCE not in means:
            continue
        tasks = [task for task in own if task in means[REFERENCE]]
        behind = fmean(means[REFERENCE][task] - own[task] for task in tasks) if tasks else None
        if behind is None:
            continue
        share = sizes[method] / sizes[REFERENCE]
        reached = "reached" if behind <= GOAL and share <= 0.05 else "**not reached**"
        over = f"the mean of {len(tasks)} task{'s' * (len(tasks) != 1)}"
        lines.append(
            f"- {method}: {share:.1%} of the parameters of {REFERENCE}, {behind:.1f} points behind it in {over}; the "
            f"goal (at most 5%, at most {GOAL} points) is {reached}."
        )
    return "\n".join(lines)


def each(found: list[dict[str, Any]]) -> str:
    """Every cell, with what was tried and all metrics."""
    lines = ["## Cells", "", "| method | task | seed | validation by rate | test | s |", "|---" * 6 + "|"]
    for cell in found:
        tried = ", ".join(f"{rate}: {100 * value:.1f}" for rate, value in cell["validation"].items())
        metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in cell["metrics"].items())
        lines.append(
            f"| {cell['method']} | {cell['task']} | {cell['seed']} | {tried} | {metrics} | {cell['seconds']:.0f} |"
        )
    return "\n".join(lines)


MERGES = ("joint", "joint_wide", "average", "uniform")


def tasks_of(run: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("expert:") for name in run["controls"] if name.startswith("expert:")]


def lost(run: Mapping[str, Any]) -> dict[str, float]:
    """What the mixture loses against the expert of each task, in points."""
    controls = run["controls"]
    return {
        task: 100 * (controls[f"expert:{task}"]["score"][task] - controls["router"]["score"][task])
        for task in tasks_of(run)
    }


def ahead(run: Mapping[str, Any], name: str) -> str:
    """How far the router is ahead of a contender, in points of error, with its interval."""
    versus = run["controls"].get(name, {}).get("versus_router")
    if not versus:
        return "not computed"
    low, high = versus["interval"]
    return f"{100 * versus['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def summary(recipe: str, runs: list[dict[str, Any]], wanted: int) -> str:
    """The mixtures of one recipe, a line for each seed: what routing costs, and whether joining pays."""
    heading = f"## Mixtures of TT-LoRA r=2 experts: recipes/{recipe}.yaml"
    told = f"Finished: {len(runs)} of {wanted}."
    if not runs:
        return f"{heading}\n\n{told}"
    tasks = tasks_of(runs[0])
    steps = ", ".join(f"{task} {number}" for task, number in runs[0]["steps"].items())
    lines = [
        heading,
        "",
        f"{told} Steps: {steps}. First what the mixture loses against the lone expert of each task, in points of the "
        "task's score; then how far it is ahead of others on all rows, in points of error, with paired 95% intervals.",
        "",
        f"| seed | router accuracy | accuracy x score | {' | '.join(tasks)} | mean | {' | '.join(MERGES)} |",
        "|---" * (len(tasks) + len(MERGES) + 4) + "|",
    ]
    for run in runs:
        behind, router = lost(run), run["router"]
        cells = " | ".join(f"{one:+.2f}" for one in (*behind.values(), fmean(behind.values())))
        lines.append(
            f"| {run['seed']} | {router['accuracy']:.4f} | {100 * router['accuracy_x_score']:.1f} | {cells} "
            f"| {' | '.join(ahead(run, name) for name in MERGES)} |"
        )
    if len(runs) > 1:
        means = {task: fmean(lost(run)[task] for run in runs) for task in tasks}
        cells = " | ".join(f"{one:+.2f}" for one in (*means.values(), fmean(means.values())))
        lines.append(
            f"| all | {fmean(run['router']['accuracy'] for run in runs):.4f} | | {cells} |{' |' * len(MERGES)}"
        )
    return "\n".join(lines)


def mixture(recipe: str, run: Mapping[str, Any]) -> str:
    """All contenders of a run on all tasks."""
    controls, tasks = run["controls"], tasks_of(run)
    lines = [
        f"### {recipe}, seed {run['seed']}",
        "",
        "Who may answer with any label of any task; differences to the router are of errors, above 0 it is ahead.",
        "",
        f"| contender | {' | '.join(tasks)} | all | mixture better by |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for name in (*(f"expert:{task}" for task in tasks), *SHOWN):
        if name in controls:
            scores = controls[name]["score"]
            cells = " | ".join(f"{100 * scores[task]:.1f}" for task in (*tasks, "all"))
            lines.append(f"| {name} | {cells} | {'-' if name == 'router' else ahead(run, name)} |")
    return "\n".join(lines)
