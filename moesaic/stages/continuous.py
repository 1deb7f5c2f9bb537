"""Continuous training: round after round one expert is trained on, measured, and kept where it is clearly better.

A round is a pure function of the state before it, and ends when the state after it replaces that one. Everything else
(experts, router, mixture, log, page) follows from a state, so the next start does whatever a crash has left undone.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moesaic.errors import DataError, NonFiniteError, RecipeError
from moesaic.files import JsonlWriter, disk, read_jsonl
from moesaic.recipe import Recipe
from moesaic.report.rounds import LOG, write_day
from moesaic.runs.checkpoints import training
from moesaic.runs.jobs import Jobs, threads
from moesaic.runs.part import Part, ensure, graph_of
from moesaic.runs.progress import Progress, Silent
from moesaic.runs.rejected_rows import take_stock
from moesaic.runs.signals import heed
from moesaic.sections.sources import HUB
from moesaic.stages.base import BasePart
from moesaic.stages.experts import ExpertPart, Trial, folders_of, made_here
from moesaic.stages.mixture import MixturePart
from moesaic.stages.routers import RouterPart, specs
from moesaic.stages.standing import (
    ROOM,
    ContinuedPart,
    Rows,
    State,
    Turn,
    content_of,
    limited,
    publish_state,
    read_state,
    require_appended,
    require_same_section,
    require_unchanged,
    section_of,
    trial_in,
    trial_of,
)
from moesaic.stages.through_mixture import decided, held_out, measure, start_of, verdict
from moesaic.tasks import Address, Run, open_run
from moesaic.tasks.task import Plan
from moesaic.train.loop import fit
from moesaic.train.states import TENSORS

ENOUGH = 10
"""Validation rows of a domain; with fewer, intervals by resampling are too narrow."""


class Quiet(Silent):
    """A Progress that passes on warnings alone: parts that follow from a round are no news."""

    def __init__(self, inner: Progress):
        self.inner = inner

    def warn(self, text: str) -> None:
        self.inner.warn(text)


class Shop:
    """One run that is trained on: the run as its recipe names it, and the listeners and processes of the work."""

    def __init__(self, run: Run, progress: Progress, jobs: Jobs):
        self.run, self.progress, self.jobs = run, progress, jobs
        self.room = run.dir.root / ROOM

    def reading(self, rows: Rows) -> Run:
        """The run with as many rows of each file as `rows` says, and no row behind them."""
        recipe = limited(self.run.recipe, rows)
        return open_run(Address(replace(self.run.dir, recipe=recipe), self.run.address.found), self.run.models)

    def make(self, parts: Sequence[Part]) -> None:
        """Make those of the parts that are not finished; says nothing about the others."""
        pending = [part for part in parts if not part.finished(self.progress)]
        base = self.run.recipe.base.new
        known = graph_of([*([BasePart(self.run, base)] if base else []), *pending])
        ensure(known, pending, Quiet(self.progress), self.jobs)


def train_continuously(run: Run, names: Sequence[str], rounds: int | None, progress: Progress, jobs: Jobs) -> None:
    """Train the named experts on in turn until `rounds` rounds are done in all, or until a signal."""
    if run.recipe.mixture.level == "token":
        expected, hint = "level sequence", "rounds are judged by decisions on prompts"
        raise RecipeError("not trained continuously", field="mixture.level", expected=expected, got="token", hint=hint)
    shop = Shop(run, progress, jobs)
    state, here = begun(shop)
    for domain in here.materials.domains.values():
        if (groups := len({row.group for row in domain.validation})) < ENOUGH:
            progress.warn(f"{domain.name}: {groups} rows for validation tell little: a gain that is kept may be noise")
    looked, waiting = None, False
    while True:
        settle(shop, here, state)
        if rounds is not None and state.round >= rounds:
            return
        heed()
        sizes = sizes_of(run)
        if sizes != looked and not under_way(shop, state):
            grown = picked_up(shop, here, state)
            if grown:
                state, here = grown
                settle(shop, here, state)
            looked = sizes
        name = next_of(state, names, run.recipe.continuous.patience)
        if name:
            state, waiting = one_round(shop, here, state, name), False
        elif rounds is not None:
            progress.note("every expert rests, as no round was a clear gain: add rows to train on")
            return
        else:
            if not waiting:
                progress.note("every expert rests, as no round was a clear gain: waits for rows to be added")
            waiting = True
            time.sleep(run.recipe.continuous.seconds)


def next_of(state: State, names: Sequence[str], patience: int) -> str | None:
    """The expert whose turn is next: behind the last one, without those that rest."""
    after = names.index(state.last) + 1 if state.last in names else 0
    awake = [name for name in [*names[after:], *names[:after]] if state.experts[name].misses < patience]
    return awake[0] if awake else None


# --- begin, and pick up rows


def begun(shop: Shop) -> tuple[State, Run]:
    """The state to continue from, with experts that joined the recipe and without those that left it."""
    run, old = shop.run, read_state(shop.run.dir, shop.progress)
    trained = run.recipe.trained
    here = shop.reading(old.rows if old else {})
    take_stock(here.dir, here.materials.rejects, lambda: here.materials.files, shop.progress)
    domains = here.materials.domains
    known = {name: turn for name, turn in old.experts.items() if name in trained} if old else {}
    if old:
        require_unchanged(domains, old)
        for name in known:
            require_same_section(here, name, old)
        if {*trained} == {*old.experts} and domains.keys() == old.rows.keys():
            return old, here
    here = shop.reading({name: domain.read for name, domain in domains.items()})
    joining = [name for name in trained if name not in known]
    shop.make([ExpertPart(here, name) for name in joining])
    shop.make([RouterPart(here, "router", specs(here)["router"])])
    turns = known | {name: Turn(trial_in(here, name)) for name in joining}
    start = {name: some for name, some in old.start.items() if name in domains} if old else {}
    held = held_out(here, start)
    weights = decided(here, here.dir.router_at("router"), held.rows, shop.jobs.report("validation"))
    with threads(here.recipe.workers):
        now = measure(here, folders_of(here), weights, held, trained[0])
    start |= start_of(held, now, [name for name in domains if name not in start])
    state = State(
        round=old.round if old else 0,
        last=old.last if old else None,
        experts={name: turns[name] for name in trained},
        rows={name: domain.read for name, domain in domains.items()},
        digests={name: content_of(domain) for name, domain in domains.items()},
        sections={name: section_of(here, name) for name in trained},
        start=start,
        line=old.line if old else None,
        tensors={name: old.tensors[name] for name in known} if old else {},
    )
    plans = {name: trial_of(here, name, turns[name].trial).plan for name in joining}
    fresh = {name: here.task.trainer(plan).values(plan, here.dir.part_at(name)) for name, plan in plans.items()}
    return publish_state(here.dir, state, fresh), here


def sizes_of(run: Run) -> list[int]:
    """The sizes of all files of rows, to see whether any was written to."""
    paths = [path for path in run.recipe.sources.values() if not path.startswith(HUB)]
    return [run.materials.resolve(path).stat().st_size for path in paths]


def picked_up(shop: Shop, here: Run, state: State) -> tuple[State, Run] | None:
    """The state and the run with the rows that were appended since; None without any, or while one is being written."""
    whole = shop.reading({})
    try:
        domains = whole.materials.domains
    except DataError as error:
        if not error.path or ends_line(Path(error.path)):
            raise
        shop.progress.note(f"{error.path}: the last row is still being written")
        return None
    rows = {name: domain.read for name, domain in domains.items()}
    if rows == state.rows:
        return None
    for name, domain in here.materials.domains.items():
        require_appended(domain, domains[name])
    digests = {name: content_of(domain) for name, domain in domains.items()}
    grown = [name for name in domains if digests[name] != state.digests[name]]
    experts = state.experts | {name: replace(state.experts[name], misses=0) for name in grown if name in state.experts}
    shop.progress.note(f"rows were added: {', '.join(grown) or 'none that is new'}")
    state = replace(state, rows=rows, digests=digests, experts=experts)
    return publish_state(here.dir, state, {}), shop.reading(rows)


def ends_line(path: Path) -> bool:
    """Tell whether the last line of a file has ended."""
    with disk.errors(path), path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


# --- one round


def one_round(shop: Shop, here: Run, state: State, name: str) -> State:
    """Train an expert on, measure it, and publish the state after the round."""
    started, turn, number = time.monotonic(), state.experts[name], state.round + 1
    trial = trial_of(here, name, turn.trial)
    lr = trial.lr / 2**turn.misses
    tensors = trained_on(shop, here, state, name, trial, lr)
    judged = judged_round(shop, here, state, name, tensors) if tensors else {"outcome": "diverged", "worse": []}
    kept, steps = judged["outcome"] == "kept", here.recipe.continuous.steps
    ended = {"ended": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - started, 2)}
    domains = here.materials.domains.items()
    rows = {name: {"train": len(one.train), "validation": len(one.validation)} for name, one in domains}
    line = {"round": number, "expert": name, "steps": steps, "lr": lr, **judged, "rows": rows, "timing": ended}
    turn = replace(turn, steps=turn.steps + steps, misses=0 if kept else turn.misses + 1)
    after = replace(
        state,
        round=number,
        last=name,
        experts=state.experts | {name: replace(turn, kept=number) if kept else turn},
        line=line,
        tensors=state.tensors | ({name: tensors} if tensors and kept else {}),
    )
    shop.progress.note(in_words(line))
    return publish_state(here.dir, after, {})


def trained_on(shop: Shop, here: Run, state: State, name: str, trial: Trial, lr: float) -> Path | None:
    """Train an expert for one round from its best and its moments; the file of both, None where it has diverged."""
    turn, number, recipe = state.experts[name], state.round + 1, here.recipe
    plan = one_round_of(trial.plan, recipe)
    settings, report = plan.settings, shop.jobs.report(name)
    inputs = {
        "round": number,
        "expert": ContinuedPart(here, name, state).inputs(),
        "steps": turn.steps,
        "lr": lr,
        "workers": recipe.workers,
    }
    inputs |= {"train": settings.model_dump(mode="json")}
    offset = turn.steps * settings.accumulate
    report.begin(settings.steps)
    with threads(recipe.workers):
        objective = here.task.trainer(plan).objective(plan)
        origin = state.tensors[name]
        arguments = training(here.dir, shop.room, trial_name(number), inputs, report, origin=origin, leaves=True)
        with arguments as (keeper, record):
            try:
                fit(
                    objective.parameters,
                    lambda micro: objective.batch(offset + micro),
                    objective.loss,
                    objective.validate,
                    settings,
                    lr,
                    record,
                    recipe.seed + number,
                    keeper,
                    lambda micro: objective.names(offset + micro),
                    scaled=objective.scaled,
                )
            except NonFiniteError as error:
                report.end(f"diverged: {error}")
                return None
    report.end("trained")
    return keeper.at / TENSORS


def one_round_of(plan: Plan, recipe: Recipe) -> Plan:
    """The plan of one round: validated once, at its end."""
    once = {"steps": recipe.continuous.steps, "evaluate_every": 0, "patience": 0}
    return replace(plan, settings=plan.settings.model_copy(update=once))


def judged_round(shop: Shop, here: Run, state: State, name: str, tensors: Path) -> dict[str, Any]:
    """Judge the expert of a round by the mixture that it would be in, router included."""
    draft, report = drafted(shop, here, state, name, tensors), shop.jobs.report("validation")
    held, own = held_out(here, state.start), here.dir.router_at("router")
    with threads(here.recipe.workers):
        weights = decided(here, own, held.rows, report)
        before = measure(here, folders_of(here), weights, held, name)
        if specs(here)["router"].loss.task:  # this router learns from the experts' losses
            shop.make([RouterPart(draft, "router", specs(draft)["router"])])
            weights = decided(draft, draft.dir.router_at("router"), held.rows, report)
        after = measure(draft, folders_of(draft), weights, held, name, before)
    return verdict(held, name, before, after, state.start, here.recipe.seed)


def drafted(shop: Shop, here: Run, state: State, name: str, tensors: Path) -> Run:
    """The run as it would be with the expert of a round: in a folder of its own, with links to all other parts."""
    at = replace(here.dir, root=shop.room / "draft")
    disk.remove(at.root)
    links = {here.dir.part_at(one): at.part_at(one) for one in here.recipe.experts if made_here(here, one)}
    links |= {here.dir.base_at: at.base_at} if here.recipe.base.new else {}
    for source, link in links.items():
        if source != here.dir.part_at(name):
            disk.make_all(link.parent)
            disk.link(source.resolve(), link)
    draft = Run(at, here.materials, here.models, type(here.task)(at, here.materials, here.models))
    new = replace(state, tensors={**state.tensors, name: tensors})
    ContinuedPart(draft, name, new).make(shop.jobs.report(name))
    return draft


def trial_name(number: int) -> str:
    return f"round-{number}"


def under_way(shop: Shop, state: State) -> bool:
    """Tell whether the next round was begun already, so that the rows it reads are decided."""
    return (shop.run.dir.states_at(shop.room) / trial_name(state.round + 1)).exists()


# --- everything that follows from a state


def settle(shop: Shop, here: Run, state: State) -> None:
    """Publish what a state says: experts, router and mixture, its row in the log and its page."""
    shop.make([ContinuedPart(here, name, state) for name in state.experts])
    shop.make([RouterPart(here, "router", specs(here)["router"])])
    anew = Run(here.dir, here.materials, here.models, type(here.task)(here.dir, here.materials, here.models))
    shop.make([MixturePart(anew, shop.progress)])
    if state.line:
        log_round(shop.room, state.line)
    if not under_way(shop, state):
        disk.remove(shop.room / "draft")
        shop.run.dir.forget(shop.room)
        for log in shop.run.dir.logs_at(shop.room).glob("*.jsonl"):
            if log.stem != trial_name(state.round):
                disk.remove(log)


def log_round(room: Path, line: dict[str, Any]) -> None:
    """Append a round to the log unless it is there, and write the page of its day."""
    with JsonlWriter(room / LOG) as log:
        last = max((row["round"] for _, row in read_jsonl(room / LOG)), default=0)
        if line["round"] > last:
            log.append(line)
    write_day(room, line["timing"]["ended"][:10])


def in_words(line: dict[str, Any]) -> str:
    """A round in one line."""
    told = f"round {line['round']}: {line['expert']}, {line['outcome']}"
    if line["outcome"] == "diverged":
        return f"{told} at lr {line['lr']:g}"
    mean, low, high = line["difference"]
    worse = f"; worse: {', '.join(line['worse'])}" if line["worse"] else ""
    return f"{told}: {line['before']:.3f} to {line['after']:.3f} ({mean:+.3f}, {low:+.3f} to {high:+.3f}){worse}"
