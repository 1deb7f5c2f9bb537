"""Decisions in use: conversations that go on and change their subject, and short questions that belong to no expert.

Conversations go to the mixture of a user who has adapters and a file of prompts for each: `adopt` trains its router.
Questions go to one of a recipe. Only decisions are measured, by the calls of the server's thread, so the adapters have
random values.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import moesaic
from benchmarks.page import Bar, Options, Page, Section, measured_here
from moesaic.adapters import LoRA
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base
from moesaic.evaluate.routers import calibration_error, reliability
from moesaic.generate.loaded import WritingModel
from moesaic.generate.request import BASE
from moesaic.ops.metrics import auroc, of_a_share
from moesaic.recipe import parse
from moesaic.serve.choosing import Decision
from moesaic.serve.conversations import NO_TALK, Conversations, Held, Talk
from moesaic.serve.version import Limits, Order, Version
from moesaic.tokenizer import Conversation, Message

DOMAINS = {
    "math": ["gsm8k"],
    "code": ["mbpp", "code_instruct"],
    "errands": ["sgd_dialogues"],
    "knowledge": ["mmlu", "arc"],
}
FOLLOW_UPS = (
    *("and shorter", "why?", "say it in other words", "thanks, go on", "are you sure?", "commit it", "once more"),
    *("half as long, please", "ok, what happens then?", "could you elaborate?", "that is not what I asked for"),
    *("let me think about it", "great, do it", "now without the last part", "hang on, which one?", "I like it"),
    *("explain like I am five", "use simpler words", "what makes you think so?", "start from the top", "not that one"),
)
ANSWERS = (
    "Yes, here it is.",
    "Sure: see above, the same in fewer words.",
    "I have done that.",
    "That is how it works.",
)
TURNS = 3
"""Turns of a user before the subject changes, and after."""
LONGEST = 250
"""Characters of a message, so that six turns fit the context of the shipped base."""
TYPOS = 0.05
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """Training prompts of each expert of `adopt` and of all of a recipe, and what is decided."""

    prompts: int = 100
    talks: int = 100
    taught: int = 100_000
    questions: int = 2000


def page(options: Options) -> Page:
    """Conversations over the shipped base and, where a folder is named, over SmolLM2, and questions out of scope."""
    sizes = Sizes(40, 8, 300, 40) if options.quick else Sizes()
    shipped = Path(moesaic.__file__).parent / "shipped" / "tiny"
    folders = {"the shipped base": shipped}
    if named := os.environ.get("MOESAIC_SMOLLM2"):
        folders["SmolLM2-135M-Instruct"] = Path(named)
    sections = []
    for base, place in folders.items():
        with TemporaryDirectory() as folder:
            sections.append(going_on(base, place, Path(folder), options.shared / "data", sizes))
    with TemporaryDirectory() as folder:
        sections.append(out_of_scope(shipped, Path(folder), options.shared / "data", sizes))
    return measured_here("\n".join(map(str, sections)))


def adopted(base: Path, folder: Path, prompts: dict[str, Rows]) -> Version:
    """A mixture with an expert for each list of prompts, as a server has it."""
    stored, experts, files = load_base(base), {}, {}
    for seed, (name, rows) in enumerate(prompts.items()):
        generator = torch.Generator().manual_seed(seed)
        layers = range(len(stored.decoder.layers))
        experts[name], files[name] = folder / name, folder / f"{name}.jsonl"
        experts[name].mkdir()
        adapter = LoRA.fresh(stored.decoder, 1, 2.0, ["q_proj"], layers, generator)
        save_expert(experts[name], adapter, stored.fingerprint, {"name": name})
        files[name].write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    moesaic.adopt(experts, base, folder / "made", prompts=files, name="mix")
    model = moesaic.load(folder / "made")
    assert isinstance(model, WritingModel)
    return Version("mix", model, Limits())


def asked(version: Version, messages: Conversation, held: Held | None = None, talk: Talk = NO_TALK) -> Decision:
    order = Order(model="mix", prompt=messages, raw=False, talk=talk, max_new_tokens=1)
    return version.decide(order, version.read(version.request(order)), held, None)[0]


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def drawn(rows: Rows, count: int, seed: str) -> Rows:
    return random.Random(seed).sample(rows, min(count, len(rows)))


# --- conversations that go on -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """What a user says, what is answered, and the expert whose subject it is."""

    user: str
    answer: str
    expert: str


@dataclass
class Count:
    """Turns of a user after the first: those that stay with a subject, and those that change it."""

    staying: int = 0
    switched: int = 0
    changes: int = 0
    followed: int = 0

    def add(self, subjects: Sequence[str], experts: Sequence[str]) -> None:
        for (before, now), (had, has) in zip(pairwise(subjects), pairwise(experts), strict=True):
            if before == now and had == before:
                self.staying += 1
                self.switched += has != had
        for place, (before, now) in enumerate(pairwise(subjects), 1):
            if before != now:
                self.changes += 1
                self.followed += now in experts[place : place + 2]

    @property
    def false(self) -> float:
        return self.switched / max(1, self.staying)

    @property
    def true(self) -> float:
        return self.followed / max(1, self.changes)


def going_on(base: str, place: Path, folder: Path, data: Path, sizes: Sizes) -> Section:
    """Does a conversation keep its expert while it stays with a subject, and get another one when it changes?"""
    train, test = (
        {name: of_domain(data, sets, split) for name, sets in DOMAINS.items()} for split in ("train", "test")
    )
    version = adopted(place, folder, {name: drawn(rows, sizes.prompts, name) for name, rows in train.items()})
    sticky, last, tools = Count(), Count(), [0, 0]
    for number in range(sizes.talks):
        draw = random.Random(number)
        turns = [turn for name in draw.sample([*DOMAINS], 2) for turn in talk_of(name, test[name], draw)]
        subjects = [turn.expert for turn in turns]
        sticky.add(subjects, [*held_over(version, turns, tools)])
        last.add(subjects, [asked(version, (Message("user", turn.user),)).expert for turn in turns])
    text = (
        f"Over {base}: experts {', '.join(DOMAINS)}, a router of {sizes.prompts} prompts each. {sizes.talks} "
        f"conversations of test rows, {TURNS} turns of a user about one subject and {TURNS} about another. Turns of "
        "`errands` are those of the set; elsewhere short follow-ups come after a question, such as "
        f'"{FOLLOW_UPS[0]}" or "{FOLLOW_UPS[5]}". A false switch is counted where the expert was right before. Where '
        f"each message is decided by itself, {last.false:.1%} of turns switch falsely and {last.true:.1%} of changes "
        f"are followed. Messages are cut to {LONGEST} characters."
    )
    bars = [
        Bar(f"false switches of {sticky.staying:,} turns", "at most 2%", f"{sticky.false:.1%}", sticky.false <= 0.02),
        Bar(
            f"followed within a turn, of {sticky.changes:,} changes",
            "at least 90%",
            f"{sticky.true:.1%}",
            sticky.true >= 0.9,
        ),
        Bar(f"switches on {tools[0]:,} results of tools", "0", f"{tools[1]}", not tools[1]),
    ]
    return Section(f"Conversations, {base}", text, bars)


def of_domain(data: Path, sets: list[str], split: str) -> Rows:
    return [row for name in sets for row in read(data / name / f"{split}.jsonl")]


def talk_of(name: str, rows: Rows, draw: random.Random) -> Iterator[Turn]:
    """Some turns about one subject."""
    row = draw.choice(rows)
    if "messages" in row:
        said = [one["content"] for one in row["messages"]]
        for user, answer in [*zip(said[::2], said[1::2], strict=False)][:TURNS]:
            yield Turn(user[:LONGEST], answer[:LONGEST], name)
        return
    yield Turn(row["prompt"][:LONGEST], row["response"][: LONGEST // 2], name)
    for follow_up in draw.sample(FOLLOW_UPS, TURNS - 1):
        yield Turn(follow_up, draw.choice(ANSWERS), name)


def held_over(version: Version, turns: Sequence[Turn], tools: list[int]) -> Iterator[str]:
    """The experts of a conversation as the server decides; `tools` counts results of tools, and switches on them."""
    known, messages = Conversations(), tuple[Message, ...]()
    for turn in turns:
        messages = (*messages, Message("user", turn.user))
        talk = Talk(messages=messages)
        decision = asked(version, messages, known.held(talk), talk)
        assert decision.probabilities is not None
        known.hold(talk, [turn.answer], Held(decision.expert, decision.probabilities))
        messages = (*messages, Message("assistant", turn.answer))
        result = (*messages, Message("tool", '{"status": "done"}'))
        after = asked(version, result, known.held(Talk(messages=result)), Talk(messages=result))
        tools[0] += 1
        tools[1] += after.expert != decision.expert
        yield decision.expert


# --- questions of no expert -------------------------------------------------------------------------------------------


def out_of_scope(place: Path, folder: Path, data: Path, sizes: Sizes) -> Section:
    """Are probabilities right, also for questions that no expert was made for, and what do typos cost?"""
    train, test = (read(data / "clinc150" / f"{split}.jsonl") for split in ("train", "test"))
    names = sorted({row["domain"].replace(" ", "_") for row in train} - {"oos"})
    version = routed(place, folder, {"train": drawn(train, sizes.taught, "train"), "test": test}, names)
    some = drawn(test, sizes.questions, "test")
    own = np.array([row["domain"] != "oos" for row in some])
    labels = np.array([names.index(row["domain"].replace(" ", "_")) if row["domain"] != "oos" else -1 for row in some])
    shares, chosen = decided(version, [row["text"] for row in some], names)
    misspelt, _ = decided(version, [typed(row["text"], number) for number, row in enumerate(some)], names)
    best = shares[:, :-1].argmax(1)
    right, fewer = (float((one == labels)[own].mean()) for one in (best, misspelt[:, :-1].argmax(1)))
    errors = {
        what: calibration_error(reliability(labels[which].tolist(), chosen[which].tolist(), shares[which]))
        for what, which in (("own questions", own), ("all questions", np.ones_like(own)))
    }
    known = auroc(1 - shares[own, -1], 1 - shares[~own, -1])
    sure = coverage(shares[:, :-1].max(1), best == labels)
    left = [float((chosen[which] < 0).mean()) for which in (own, ~own)]
    low, high = of_a_share(right * own.sum(), int(own.sum()))
    text = (
        f"The ten domains of clinc150 as experts, and a router of a recipe on characters: {own.sum():,} test questions "
        f"of theirs and {(~own).sum():,} out of scope, none of which training has seen. The right expert is the most "
        f"probable for {right:.1%} ({low:.1%} to {high:.1%}) of their own. The base answers {left[0]:.1%} of these and "
        f"{left[1]:.1%} of the others; AUROC {known:.3f}. By the highest probability, {sure:.1%} of all questions are "
        "answered with a precision of 95%. Calibrated on questions and neutral text that training held out."
    )
    bars = [
        Bar(f"calibration error, {what}", "at most 0.05", f"{error:.3f}", error <= 0.05)
        for what, error in errors.items()
        if error is not None
    ]
    lost = f"{(right - fewer) * 100:.1f} points of {right:.1%}"
    bars.append(Bar(f"fewer right with {TYPOS:.0%} typos", "at most 3 points", lost, right - fewer <= 0.03))
    return Section("Questions out of scope", text, bars)


def routed(place: Path, folder: Path, splits: dict[str, Rows], names: list[str]) -> Version:
    """A mixture of a recipe, whose experts have seen one batch: only its router matters."""
    for name in names:
        for split, rows in splits.items():
            own = [prompted(row) for row in rows if row["domain"].replace(" ", "_") == name]
            (folder / f"{name}-{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own), "utf-8")
    data = {name: {split: f"{name}-{split}.jsonl" for split in splits} for name in names}
    settings = {
        **{"name": "mix", "workers": 1, "base": {"path": str(place)}, "data_root": str(folder)},
        "train": {"steps": 1, "batch": 1, "length": 32, "evaluate_every": 0},
        "experts": {name: {"kind": "lora", "rank": 1, "targets": ["q_proj"], "data": data[name]} for name in names},
        "router": {"kind": "mlp", "feature": "characters", "selection": "top_1", "renormalise": True},
        "evaluate": {"controls": ["base"], "limit": 1, "samples": 0},
    }
    moesaic.run(parse(settings), folder / "run")
    model = moesaic.load(folder / "run" / "mixture")
    assert isinstance(model, WritingModel)
    return Version("mix", model, Limits())


def prompted(row: dict[str, Any]) -> dict[str, str]:
    return {"prompt": row["text"], "response": row["label"]}


def decided(version: Version, texts: list[str], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of the experts and, last, of the base, and who answers; -1: the base."""
    found = [asked(version, (Message("user", text),)) for text in texts]
    shares = np.array([[one.probabilities[name] for name in (*names, BASE)] for one in found if one.probabilities])
    return shares, np.array([names.index(one.expert) if one.expert != BASE else -1 for one in found])


def coverage(confidence: np.ndarray, right: np.ndarray, precision: float = 0.95) -> float:
    """The largest share of rows, the most confident ones, of which so many are right."""
    correct = np.cumsum(right[np.argsort(-confidence, kind="stable")])
    enough = np.flatnonzero(correct / np.arange(1, len(correct) + 1) >= precision)
    return float((enough[-1] + 1) / len(right)) if len(enough) else 0.0


def typed(text: str, seed: int) -> str:
    """A text with typos: letters that are left out, doubled, exchanged with the next or replaced."""
    draw, letters = random.Random(seed), [*text]
    for at in range(len(letters)):
        if letters[at].isalpha() and draw.random() < TYPOS:
            letter, after = letters[at], letters[at + 1] if at + 1 < len(letters) else ""
            letters[at] = draw.choice(("", 2 * letter, draw.choice(LETTERS), f"{after}{letter}" if after else letter))
    return "".join(letters)
