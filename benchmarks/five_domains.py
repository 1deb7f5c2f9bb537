"""The fifth source system over SmolLM2-135M: its table beside ours, what it asks for next, and exact answers.

Every step is a run of recipes/five-domains-smollm2.yaml with overrides; its findings are kept beside the run, so that
an interrupted benchmark goes on with the parts that are missing. The published setting is always made; of the next
steps those that `--next` names, and the page says which are missing.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import moesaic
from benchmarks.adapter_merges import RULES, merged
from benchmarks.five_domains_report import report
from benchmarks.mixtures import QUICK
from benchmarks.page import RECIPES, Options, Page
from benchmarks.pages import STEPS
from moesaic.data.rows import Example, read_examples
from moesaic.data.splits import take
from moesaic.evaluate.score import score
from moesaic.evaluate.statistics import Scores
from moesaic.files import read_json, write_json
from moesaic.kinds.gates import plain
from moesaic.recipe import Recipe
from moesaic.recipe import read as read_recipe
from moesaic.routing import controls
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Cache, Report
from moesaic.stages.decisions import decisions_on
from moesaic.stages.experts import folders_of, verify_expert
from moesaic.tasks import Address, Run, open_run
from moesaic.train.language import mean_nats

RECIPE = RECIPES / "five-domains-smollm2.yaml"
DOMAINS = ("math", "code", "knowledge", "conversation", "reasoning")
PUBLISHED = "published"
SMALL_RUN = ("evaluate.controls=[base,average,uniform,random,keyword,oracle,oracle_best]", "evaluate.samples=0")
"""What every step but the published one leaves out: training the joint experts, and samples."""


def ranks(rank: int) -> tuple[str, ...]:
    settings = ((f"experts.{name}.rank={rank}", f"experts.{name}.alpha={2 * rank}") for name in DOMAINS)
    return tuple(one for some in settings for one in some)


ROWS = (
    "experts.math.data.train=[{path: gsm8k/train.jsonl, limit: 2223}]",
    "experts.code.data.train=[mbpp/train.jsonl, {path: code_instruct/train.jsonl, limit: 1852}]",
    "experts.knowledge.data.train=[mmlu/train.jsonl, truthfulqa/train.jsonl]",
    "experts.conversation.data.train=[{path: sgd_dialogues/train.jsonl, limit: 270, every: 7}]",
    "experts.reasoning.data.train=[{path: arc/train.jsonl, limit: 2223}]",
)
OVERRIDES = (ranks(8), ranks(16), ("train.steps=375",), (*ROWS, "train.steps=500"))
NEXT: dict[str, tuple[str, ...]] = dict(zip(STEPS, OVERRIDES, strict=True))
"""What the document asks for next -> overrides of the recipe. A neural router and merged adapters are in every run."""

TREE = "kind: tree, groups: {exact: [math, code], rest: [knowledge, reasoning, conversation]}, examples: 8, epochs: 1"
SMALL = (*QUICK, f"router.compare=[{{kind: keyword, match: first}}, {{{TREE}}}]", "evaluate.samples=0")
SCALES = (0.3, 0.5, 1.0)
"""Tried for each merge; the best on validation rows is scored."""
VALIDATION_ROWS = 20
"""Rows of each domain that choose the scale of a merge."""


@dataclass(frozen=True)
class Questions:
    """A test set with exact answers. `expert`: that of its domain; `answer`: text -> the answer in it, if any."""

    expert: str
    answer: Callable[[str], str | None]
    rows: int
    max_new_tokens: int


def number_in(text: str) -> str | None:
    """The number behind the last `####`, else the last number of a text."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text.rpartition("####")[2])
    return f"{float(found[-1].replace(',', '')):g}" if found else None


def letter_in(text: str) -> str | None:
    """The first letter A to D that is given as a choice: before a dot, a colon, a bracket or the end of a line."""
    found = re.search(r"\b([A-D])(?=[.:)]|\s*$)", text, re.MULTILINE)
    return found[1] if found else None


EXACT = {"gsm8k": Questions("math", number_in, 100, 200), "arc": Questions("reasoning", letter_in, 200, 24)}
"""Folder of the test rows -> how they are answered."""


def page(options: Options) -> Page:
    """Make the published run and the next steps that were asked for, and report on all that are finished."""
    wanted = [PUBLISHED, *options.next]
    for step in wanted:
        settings = read_recipe(RECIPE, overrides(step, options))
        moesaic.run(settings, place(step, options))
        findings(step, settings, options)
    answered = exact_answers(options)
    steps = {step: found for step in (PUBLISHED, *NEXT) if (found := kept(step, options))}
    runs = {step: read_json(place(step, options) / "evaluation.json") for step in steps}
    return report(runs, steps, answered, [step for step in NEXT if step not in steps])


def overrides(step: str, options: Options) -> list[str]:
    """What a step puts in place of the recipe's values, folders of other people included."""
    base = [f"base.path={os.environ['MOESAIC_SMOLLM2']}"] if "MOESAIC_SMOLLM2" in os.environ else []
    own = (*NEXT[step], *SMALL_RUN) if step in NEXT else ()
    small = SMALL if options.quick else ()
    return [f"name=five-domains-smollm2-{step}", f"data_root={options.shared / 'data'}", *base, *own, *small]


def place(step: str, options: Options) -> Path:
    return options.runs / f"five-domains-smollm2-{step}"


def findings_at(step: str, options: Options) -> Path:
    return options.runs / f"five-domains-smollm2-{step}.json"


# --- losses


def kept(step: str, options: Options) -> dict[str, Any] | None:
    """What was found of a step before, if its mixture is still the same."""
    at, mixture = findings_at(step, options), place(step, options) / "mixture"
    if not at.is_file() or not mixture.exists():
        return None
    found = read_json(at)
    return found if found["mixture"] == os.readlink(mixture) else None


def findings(step: str, settings: Recipe, options: Options) -> None:
    """Measure what the evaluation does not: nats by row, validation losses, and merges of the published run."""
    if kept(step, options):
        return
    started, run = time.perf_counter(), open_run(Address(RunDir(settings, place(step, options))))
    found: dict[str, Any] = {"mixture": os.readlink(run.dir.mixture_at)}
    found["validation"] = {name: verify_expert(run, name) for name in run.recipe.experts}
    found["rows"] = {name: by_row(one) for name, one in scored(run).items()}
    if step == PUBLISHED:
        found["merges"] = {rule: merge_of(run, rule) for rule in RULES}
    found["seconds"] = round(time.perf_counter() - started, 1)
    write_json(findings_at(step, options), found)


@torch.inference_mode()
def scored(run: Run) -> dict[str, Scores]:
    """Nats of every test row: of the base, of each domain's own expert, and of the mixture as its router decides."""
    rows, model, batch = run.task.test_rows, run.task.mixture.model, run.recipe.evaluate.batch
    every = [row for some in rows.values() for row in some]
    own = torch.tensor([model.names.index(domain) for domain, some in rows.items() for _ in some])
    order = [[*run.recipe.experts].index(name) for name in model.names]
    routed = decisions_on(run, every, Report("", lambda *_: None, Cache()))["router"][0][:, order]
    e = len(model.names)
    weights = {"base": controls.fixed(-1, len(every), e), "oracle": controls.oracle(own, e), "router": routed}
    return {name: score(model.score, rows, one, batch) for name, one in weights.items()}


def merge_of(run: Run, rule: str) -> dict[str, Any]:
    """The scale of a merge that is best on validation rows, and the nats of every test row at that scale."""
    experts = [one.lora for one in run.task.read_experts(folders_of(run)).values()]
    length, batch = run.recipe.train.length, run.recipe.evaluate.batch
    held_out = [row for one in run.materials.domains.values() for row in take(one.validation, VALIDATION_ROWS)]
    rows = run.task.encoded(held_out, length)
    nats: dict[float, float] = {}
    for scale in SCALES:
        nats[scale] = mean_nats(merged(run.task.fresh().decoder, experts, rule, scale), plain, rows, batch)
    best = min(nats, key=lambda scale: nats[scale])
    decoder = merged(run.task.fresh().decoder, experts, rule, best)
    scores = score(decoder.score, run.task.test_rows, None, batch)
    return {"scale": best, "validation": {f"{scale:g}": value for scale, value in nats.items()}, **by_row(scores)}


def by_row(scores: Scores) -> dict[str, Any]:
    own = {"nats": scores.nats.tolist(), "tokens": scores.tokens.tolist()}
    return {**own, "domains": scores.domains, "groups": scores.groups}


# --- exact answers


def exact_answers(options: Options) -> dict[str, dict[str, Any]]:
    """Test set -> contender -> rows, right answers and seconds; each contender is computed once."""
    mixture = place(PUBLISHED, options) / "mixture"
    of, found = os.readlink(mixture), dict[str, dict[str, Any]]()
    for name, questions in EXACT.items():
        rows = take(
            read_examples(options.shared / "data" / name / "test.jsonl"), 2 if options.quick else questions.rows
        )
        found[name] = {}
        for contender in ("base", questions.expert, "mixture"):
            at = options.runs / f"five-domains-smollm2-{name}-{contender}.json"
            told = read_json(at) if at.is_file() else {}
            if told.get("mixture") != of or told.get("rows") != len(rows):
                told = {"mixture": of, **answers(mixture, questions, contender, rows, options.quick)}
                write_json(at, told)
            found[name][contender] = told
    return found


def answers(
    mixture: Path, questions: Questions, contender: str, rows: Sequence[Example], quick: bool
) -> dict[str, Any]:
    """Ask one contender all questions, and count exact answers."""
    started = time.perf_counter()
    model = moesaic.load(mixture)
    expert, most = None if contender == "mixture" else contender, 8 if quick else questions.max_new_tokens
    written = model.generate([row.prompt for row in rows], max_new_tokens=most, expert=expert)
    pairs = zip(written, rows, strict=True)
    right = [questions.answer(one.text) == questions.answer(row.response) for one, row in pairs]
    seconds = round(time.perf_counter() - started, 1)
    return {"rows": len(rows), "right": sum(right), "seconds": seconds, "texts": [one.text for one in written]}
