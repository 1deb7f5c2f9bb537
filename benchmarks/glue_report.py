"""The page of `benchmarks.ttlora_glue`: tables of the cells that are finished, and of the mixtures.

Knows nothing about how they were computed.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean, pstdev
from typing import Any

from benchmarks.__main__ import heading

Found = Mapping[str, Any]
REFERENCE, GOAL = "LoRA r=16", 2.0
SHOWN = ("base", "joint", "joint_wide", "average", "uniform", "random", "keyword", "router", "oracle", "oracle_best")


def report(found: list[dict[str, Any]], runs: list[dict[str, Any]], wanted: int, seeds: int, given: str) -> str:
    """The whole page. `wanted`: cells there will be; `seeds`: mixtures there will be; `given`: the arguments."""
    top = heading("ttlora_glue").replace("-m benchmarks ttlora_glue", f"-m benchmarks.ttlora_glue {written(given)}")
    parts = [how(found, wanted, seeds), compared(found), each(found), pools(found), *map(mixture, runs)]
    missing = seeds - len(runs)
    if missing:
        parts.append(f"Mixtures that are not finished: {missing} of {seeds}; the same command goes on with them.")
    return top + "\n\n".join(part for part in parts if part) + "\n"


def written(given: str) -> str:
    """The arguments without the places of this machine."""
    return " ".join(["DATA", "BASE", *(word for word in given.split() if word == "--quick")])


def how(found: list[dict[str, Any]], wanted: int, seeds: int) -> str:
    """What was computed, and what was not."""
    if not found:
        return f"No cell of {wanted} is finished."
    scale, settings = found[0]["scale"], found[0]["settings"]
    rate = (
        "the rate of best validation with seed 0, of three, serves all seeds"
        if scale["grid"]
        else "one rate for each method, fixed beforehand: no method had a grid"
    )
    rows = "; ".join(
        f"{task} {one['train']} / {one['validation']} / {one['test']}"
        for task, one in {cell["task"]: cell["rows"] for cell in found}.items()
    )
    partial = "" if len(found) == wanted else f" **{wanted - len(found)} of {wanted} cells are not finished.**"
    return (
        f"all-MiniLM-L6-v2, adapters on query and value of all 6 layers. Scale `{scale['name']}`: seeds "
        f"{', '.join(map(str, scale['seeds']))}, batches of {settings['batch']} rows of at most {settings['length']} "
        f"tokens, steps {', '.join(f'{task} {steps}' for task, steps in scale['steps'].items())}, AdamW, {rate}; of "
        f"each training the state of best validation is scored.{partial}\n\nThe head is the same for all: one matrix "
        "and its bias on the mean over a row's states, trained with the rest and not counted. Seconds are those that "
        "one thread computed, peak memory is of the whole process. Scores are the first metric of each task (cola: "
        f"Matthews correlation, the others accuracy) in percent. Rows of training / validation / test: {rows}."
    )


def mean_of(found: Iterable[Found], key: str) -> float:
    return fmean(cell[key] for cell in found)


def compared(found: list[dict[str, Any]]) -> str:
    """A line for each method: cost, scores, and how far it is from LoRA of rank 16."""
    own = [cell for cell in found if cell["pool"] == "mean"]
    tasks, methods = dict.fromkeys(cell["task"] for cell in own), dict.fromkeys(cell["method"] for cell in own)
    done = [{cell["task"] for cell in own if cell["method"] == method} for method in methods]
    common = set.intersection(*done) if done else set()
    lines = [
        "## Methods",
        "",
        f"Seconds and memory: of tasks that all methods have finished ({', '.join(sorted(common)) or 'none'}).",
        "",
        f"| | parameters | of {REFERENCE} | s a training | peak MB | {' | '.join(tasks)} | mean | minus {REFERENCE} |",
        "|---" * (7 + len(tasks)) + "|",
    ]
    floors = [fmean(100 * cell["floor"] for cell in own if cell["task"] == task) for task in tasks]
    figures = " | ".join(f"{floor:.1f}" for floor in floors)
    lines.append(f"| the most frequent label | 0 | | | | {figures} | {fmean(floors):.1f} | |")
    means = dict[str, dict[str, float]]()
    for method in methods:
        some = [cell for cell in own if cell["method"] == method]
        by_task = {task: [100 * cell["score"] for cell in some if cell["task"] == task] for task in tasks}
        means[method] = {task: fmean(scores) for task, scores in by_task.items() if scores}
        alike = [cell for cell in some if cell["task"] in common] or some
        size = some[0]["parameters"]
        whole = next((cell["parameters"] for cell in own if cell["method"] == REFERENCE), None)
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
    return "\n".join([*lines, "", verdict(own, means)])


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
    lines = ["## Cells", "", "| method | task | pool | seed | validation by rate | test | s |", "|---" * 7 + "|"]
    for cell in found:
        tried = ", ".join(f"{rate}: {100 * value:.1f}" for rate, value in cell["validation"].items())
        metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in cell["metrics"].items())
        lines.append(
            f"| {cell['method']} | {cell['task']} | {cell['pool']} | {cell['seed']} | {tried} | {metrics} "
            f"| {cell['seconds']:.0f} |"
        )
    return "\n".join(lines)


def pools(found: list[dict[str, Any]]) -> str:
    """Whether a row is better read from the mean of its states or from BERT's pooler, on validation."""
    lines = []
    for first in (cell for cell in found if cell["pool"] == "first"):
        same = [
            cell
            for cell in found
            if cell["pool"] == "mean" and all(cell[key] == first[key] for key in ("method", "task", "seed"))
        ]
        if same:
            mean, pooler = (100 * max(cell["validation"].values()) for cell in (same[0], first))
            lines.append(f"| {first['task']} | {mean:.1f} | {pooler:.1f} |")
    if not lines:
        return ""
    return "\n".join([f"## Pool: {REFERENCE} on validation", "", "| | mean | BERT's pooler |", "|---|---|---|", *lines])


def mixture(run: Mapping[str, Any]) -> str:
    """A run of the recipe: the mixture on each task beside the expert of it, and all contenders on all tasks."""
    controls, router = run["controls"], run["router"]
    tasks = [name.removeprefix("expert:") for name in controls if name.startswith("expert:")]
    lines = [
        f"## The mixture of the TT-LoRA r=5 experts, seed {run['seed']}: recipes/ttlora-glue.yaml",
        "",
        f"Router accuracy {router['accuracy']:.3f}; accuracy x score of the oracle "
        f"{100 * router['accuracy_x_score']:.1f}. Who may answer with any label of any task; differences to the router "
        "are of errors, above 0 the router is ahead, with paired 95% intervals.",
        "",
        f"| contender | {' | '.join(tasks)} | all | minus router |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for name in (*(f"expert:{task}" for task in tasks), *SHOWN):
        if name in controls:
            scores, versus = controls[name]["score"], controls[name]["versus_router"]
            low, high = versus["interval"] if versus else (0, 0)
            told = f"{100 * versus['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" if versus else "-"
            cells = " | ".join(f"{100 * scores[task]:.1f}" for task in (*tasks, "all"))
            lines.append(f"| {name} | {cells} | {told} |")
    lone = {task: controls[f"expert:{task}"]["score"][task] - controls["router"]["score"][task] for task in tasks}
    behind = ", ".join(f"{task} {100 * loss:+.2f}" for task, loss in lone.items())
    lines += ["", f"The lone expert minus the mixture, in points: {behind}."]
    if absent := [name for name in SHOWN if name not in controls]:
        lines.append(f"**Not computed in this run: {', '.join(absent)}.**")
    return "\n".join(lines)
