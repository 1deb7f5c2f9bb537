"""The study of recipes/studies/pretrain.yaml: four architectures at four depths with three seeds, and two controls.

The study is made in the folder of runs, where finished trainings are skipped; its page lies in it.
"""

from typing import Any

from benchmarks.page import RECIPES, Bar, Options, Page, Section
from moesaic.lab.matching import ENOUGH
from moesaic.lab.running import run_study
from moesaic.lab.study import Study, read_study
from moesaic.runs.progress import Progress

STUDY = RECIPES / "studies" / "pretrain.yaml"
SMALL = (
    *("size=nano", "vocab_size=300", "seeds=2", "depths=[1, 2]", "arms.moe.depths=[1, 2]"),
    *("arms.dense_again.depths=[1]", "arms.planted.depths=[1]", "train.steps=300", "train.length=64"),
    *("sweep.depths=[1]", "sweep.most=3", "sweep.share=0.1", "rows=100", "data=[tinystories/train.jsonl]"),
)
"""Overrides of a study in small."""


class Lines:
    """Prints what is finished."""

    def note(self, text: str) -> None:
        print(text, flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {text}", flush=True)

    def begin(self, task: str, steps: int) -> None: ...
    def row(self, task: str, row: dict[str, Any]) -> None: ...

    def end(self, task: str, text: str) -> None:
        print(f"{task}: {text}", flush=True)


def study_of(options: Options) -> Study:
    """The study at the size that is asked for."""
    small = (*SMALL, "name=pretrain-small") if options.quick else ()
    return read_study(STUDY, [f"data_root={options.shared / 'data'}", *small])[0]


def page(options: Options, progress: Progress | None = None) -> Page:
    """The page of the study, which is made where it is not finished."""
    study = study_of(options)
    found = run_study(study, options.runs / study.name, progress or Lines())
    return Page("\n".join(map(str, sections(found))), {"": found["machine"]})


def sections(found: dict[str, Any]) -> list[Section]:
    outcomes = {(one["arm"], one["matching"]): one for one in found["comparisons"]}
    again, planted = outcomes["dense_again", "tokens"], outcomes["planted", "tokens"]
    cells = [one for arm in found["arms"].values() for one in arm["depths"]]
    least = min(one["decays"][-1]["per_parameter"] for one in cells)
    outside = [sweep["arm"] for sweep in found["sweeps"] if not sweep["interior"]]
    hours = found["thread_seconds"] / 3600
    bars = [
        Bar("the dense arm drawn anew", "undecided", told(again), again["outcome"] == "undecided"),
        Bar("half of the feed-forward layers", "worse", told(planted), planted["outcome"] == "worse"),
        Bar("tokens a parameter, least of all cells", f"at least {ENOUGH:g}", f"{least:.1f}", least >= ENOUGH),
        Bar("sweeps with an interior optimum", "all", f"{len(found['sweeps']) - len(outside)}", not outside),
        Bar("training, on one thread", "at most 2 hours", f"{hours:.2f} hours", hours <= 2),
    ]
    verdict = found["verdict"]
    text = "\n".join([verdict["sentence"], "", *(f"- {reason}" for reason in verdict["reasons"])])
    return [
        Section("Verdict", text, bars),
        Section("Comparisons", comparisons(found), []),
        Section("Arms", arms(found), []),
    ]


def told(one: dict[str, Any]) -> str:
    """A comparison in a few words."""
    if "mean" not in one:
        return f"{one['outcome']}: {one['why']}"
    return f"{one['outcome']}, {one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}] bits per byte"


def comparisons(found: dict[str, Any]) -> str:
    lines = ["Bits per byte minus those of the dense arm; below 0, the arm is better.", ""]
    lines += ["| at equal | arm | | would have shown | layers |", "|---|---|---|---|---|"]
    for one in found["comparisons"]:
        title = found["matchings"][one["matching"]]["title"]
        smallest = f"{one['smallest']:.4f}" if "smallest" in one else ""
        lines.append(f"| {title} | {one['arm']} | {told(one)} | {smallest} | {', '.join(map(str, one['depths']))} |")
    return "\n".join(lines)


def arms(found: dict[str, Any]) -> str:
    lines = [f"Each cell read {found['tokens']:,} tokens, {found['epochs']:.2f} times the corpus.", ""]
    lines += [
        "| arm | layers | parameters | active | rate | tokens/s | bits per byte |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arm in found["arms"].items():
        for one in arm["depths"]:
            low, high = one["decays"][-1]["interval"]
            bits = f"{one['decays'][-1]['bits']:.4f} [{low:.4f}, {high:.4f}]"
            sizes = f"{one['parameters']:,} | {one['active']:,}"
            lines.append(f"| {name} | {one['depth']} | {sizes} | {one['rate']:g} | {one['speed']:,.0f} | {bits} |")
    return "\n".join(lines)
