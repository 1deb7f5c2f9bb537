"""Continuous training with kills, signals and appended rows, beside the same training undisturbed.

Both train the same rounds over `shipped:tiny`. The disturbed one is a command that is killed, interrupted or terminated
at random times and started again. Rows are appended between the same rounds of both.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import moesaic
from moesaic.data.demo import rows
from moesaic.files import read_jsonl, read_manifest, versions

DOMAINS = ("math", "code", "dialogue")
RECIPE = """\
name: continuous
workers: 1
checkpoint_seconds: 0.5
base: {{path: "shipped:tiny"}}
train: {{steps: {steps}, batch: 4, length: 128, lr: 5e-3, evaluate_every: 0}}
continuous: {{steps: {steps}, patience: 4}}
router: {{kind: linear, feature: characters, abstain: "off"}}
experts:
"""
EXPERT = "  {name}: {{kind: lora, rank: 4, data: {{train: {name}.jsonl, test: {name}_test.jsonl}}}}\n"
KILLS = {signal.SIGKILL: "kill -9", signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}
SECONDS = (4.0, 25.0)
"""Shortest and longest time after which a command is disturbed."""


def report(quick: bool) -> str:
    """Train in three stages, with rows appended between them, and tabulate what was left."""
    per_stage, added, steps = (1, 8, 2) if quick else (6, 150, 40)
    with tempfile.TemporaryDirectory() as place:
        calm, rough = Path(place, "calm"), Path(place, "rough")
        disturbed, restarts = Counter[str](), 0
        for folder in (calm, rough):
            folder.mkdir()
            experts = "".join(EXPERT.format(name=name) for name in DOMAINS)
            (folder / "recipe.yaml").write_text(RECIPE.format(steps=steps) + experts)
            for name in DOMAINS:
                write(folder / f"{name}_test.jsonl", rows(name, "test"), 0, 40)
            for stage in range(3):
                for name in DOMAINS:
                    write(folder / f"{name}.jsonl", rows(name, "train"), stage * added, (stage + 1) * added)
                dice = random.Random(stage) if folder == rough else None
                for number in train(folder, (stage + 1) * per_stage, dice, quick):
                    disturbed[KILLS[number]] += 1
                    restarts += 1
        return tabulated(calm, rough, disturbed, restarts)


def write(path: Path, given: Iterable[dict[str, Any]], first: int, last: int) -> None:
    """Append some of a domain's rows to a file."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in islice(given, first, last))


def train(folder: Path, rounds: int, dice: random.Random | None, quick: bool) -> Iterator[signal.Signals]:
    """Run the command until its rounds are done; yields every signal that it was sent before."""
    command = [sys.executable, "-m", "moesaic", "train-expert", "recipe.yaml", "--continuous", "--rounds", str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(Path(moesaic.__file__).parents[1])}
    disturbances = 1 if quick else 4
    while True:
        with subprocess.Popen([*command, "--quiet"], cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                status = process.wait(dice.uniform(*SECONDS) if dice and disturbances else None)
            except subprocess.TimeoutExpired:
                assert dice
                number = dice.choice([*KILLS])
                process.send_signal(number)
                process.wait()
                disturbances -= 1
                yield number
                continue
        if status != 0:
            raise RuntimeError(f"the training ended with status {status}")
        return


def tabulated(calm: Path, rough: Path, disturbed: Counter[str], restarts: int) -> str:
    """The table of domains, and the facts that the two trainings share."""
    logs = [timeless(folder) for folder in (calm, rough)]
    told = ", ".join(f"{count} by {name}" for name, count in disturbed.items()) or "never"
    same = logs[0] == logs[1] and tensors(calm) == tensors(rough)
    lines = [
        f"{len(logs[1])} rounds over three domains, LoRA of rank 4; rows appended twice.",
        f"The disturbed training was stopped {restarts} times ({told}) and started again each time.",
        f"Its log and all tensors of experts, router and mixture are those of the undisturbed one: {same}.",
        "",
        "| domain | rounds | kept | validation at the start | at the end | change since the start, interval | best |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in DOMAINS:
        own = [line for line in logs[1] if line["expert"] == name]
        first, last = (logs[1][index]["domains"][name] for index in (0, -1))
        mean, low, high = last["since_start"]
        kept, best = sum(line["outcome"] == "kept" for line in own), len(versions(expert_at(rough, name)))
        figures = f"{first['before']:.3f} | {last['after']:.3f} | {mean:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"| {name} | {len(own)} | {kept} | {figures} | {best} |")
    note = (
        "Validation is through the mixture, in nats per token. Rows grow; the change, with its 95% interval, is on the "
        "rows of the start."
    )
    lines += ["", note]
    return "\n".join(lines) + "\n"


def timeless(folder: Path) -> list[dict[str, Any]]:
    log = folder / "runs/continuous/continuous/rounds.jsonl"
    return [{key: value for key, value in line.items() if key != "timing"} for _, line in read_jsonl(log)]


def expert_at(folder: Path, name: str) -> Path:
    return folder / "runs/continuous/experts" / name / "best"


def tensors(folder: Path) -> dict[str, Any]:
    """The hashes of all tensor files of experts, router and mixture."""
    parts = [*(expert_at(folder, name) for name in DOMAINS)]
    parts += [folder / "runs/continuous" / name for name in ("router", "mixture")]
    return {
        f"{at.relative_to(folder)}/{file}": facts
        for at in parts
        for file, facts in read_manifest(at)["files"].items()
        if file.endswith(".safetensors")
    }
