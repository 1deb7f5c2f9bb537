"""Memory and time of training a LoRA expert, against transformers and PEFT's Trainer on the same rows and first values.

Each contender is a process of its own, so that its peak is its own; they take turns, one step at a time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.page import Bar, Options, Page, Section, measured_here
from moesaic.adapters import LoRA
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base
from moesaic.data.batches import Tokens, pad
from moesaic.data.rows import read_examples, text_of
from moesaic.files import read_json, write_json
from moesaic.kinds.gates import alone
from moesaic.sections.training import Train
from moesaic.tasks.task import trainable
from moesaic.testing import ALL_TARGETS
from moesaic.train.execution import arrange
from moesaic.train.language import loss_of
from moesaic.train.loop import fit

ROWS, TOKENS, RANK, RATE = 4, 512, 8, 1e-3
STEPS = 3
"""Steps of each contender; the first is a warm-up."""


class Turns:
    """The side of a contender: waits for its turn, and reports a step's seconds of the processor and its loss."""

    def __init__(self) -> None:
        self.out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
        self.began, self.first = 0.0, held("VmRSS")

    def wait(self) -> None:
        sys.stdin.readline()
        self.began = time.process_time()

    def done(self, loss: float) -> None:
        row = {"seconds": time.process_time() - self.began, "loss": loss, "first": self.first, "peak": held("VmHWM")}
        print(json.dumps(row), file=self.out, flush=True)


def held(of: str) -> int:
    """The memory of this process, or its peak, in bytes."""
    (row,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(of))
    return 1024 * int(row.split()[1])


def train_here(folder: Path, base: Path, batches: list[list[list[int]]], recompute: bool) -> None:
    turns, decoder = Turns(), load_base(base).decoder.requires_grad_(False)
    fresh(decoder).adapt(decoder)
    settings = Train(steps=len(batches), warmup=0.0, schedule="wsd", decay=0.0, evaluate_every=0, recompute=recompute)
    arrange(decoder, settings)
    rows = [[Tokens(ids, 1, "") for ids in some] for some in batches]

    def batch(step: int) -> Any:
        turns.wait()
        return pad(rows[step], score_prompt=True)

    def record(row: dict[str, Any]) -> None:
        turns.done(row["loss"])

    fit(trainable(decoder), batch, loss_of(decoder, alone), lambda: 0.0, settings, RATE, record)


def train_there(folder: Path, base: Path, batches: list[list[list[int]]], recompute: bool) -> None:
    from peft import PeftModel
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    turns = Turns()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if recompute:
        model.enable_input_require_grads()
    losses = []

    class Told(Trainer):
        def get_train_dataloader(self) -> Any:
            given = [{"input_ids": torch.tensor(some), "labels": torch.tensor(some)} for some in batches]
            return DataLoader(given, batch_size=None)

        def training_step(self, *given: Any, **named: Any) -> Any:
            loss = super().training_step(*given, **named)
            losses.append(loss.item())
            return loss

    class Turning(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            turns.wait()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            turns.done(losses[-1])

    how = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=len(batches),
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        use_cpu=True,
        gradient_checkpointing=recompute,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    peft = PeftModel.from_pretrained(model, folder / "expert", is_trainable=True)
    trainer = Told(peft, how, callbacks=[Turning()], train_dataset=batches)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def fresh(decoder: Any) -> LoRA:
    layers = range(decoder.config.num_layers)
    return LoRA.fresh(decoder, RANK, 2.0 * RANK, ALL_TARGETS, layers, torch.Generator().manual_seed(0))


TRAIN: dict[str, tuple[Callable[..., None], bool]] = {
    "moesaic": (train_here, False),
    "moesaic, recompute: true": (train_here, True),
    "Trainer": (train_there, False),
    "Trainer, gradient_checkpointing": (train_there, True),
}


@dataclass
class Process:
    """The side of the page: a contender, and the rows that it has reported."""

    name: str
    process: "subprocess.Popen[str]"
    rows: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def begin(name: str, folder: Path, base: Path) -> "Process":
        command = [sys.executable, "-m", "benchmarks.training_memory", name, str(folder), str(base)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Process(name, subprocess.Popen(command, text=True, **pipes))

    def step(self) -> None:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        row = self.process.stdout.readline()
        if not row:
            raise RuntimeError(f"{self.name} ended: {self.process.stderr.read()}")
        self.rows.append(json.loads(row))

    @property
    def peak(self) -> int:
        return max(row["peak"] for row in self.rows)

    @property
    def seconds(self) -> float:
        return statistics.median(row["seconds"] for row in self.rows[1:])

    def furthest(self, other: "Process") -> float:
        """The largest difference of a loss from the other's at the same step."""
        return max(abs(own["loss"] - its["loss"]) for own, its in zip(self.rows, other.rows, strict=True))


def page(options: Options) -> Page:
    small = options.shared / "models" / "stories260K"
    base = small if options.quick else Path(os.environ.get("MOESAIC_SMOLLM2", options.shared / "models/smollm2-135m"))
    steps, tokens = (2, 64) if options.quick else (STEPS, TOKENS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, base, options.shared / "data" / "wikitext2" / "train.jsonl", steps, tokens)
        found = {name: Process.begin(name, folder, base) for name in TRAIN}
        for _ in range(steps):
            for one in found.values():
                one.step()
        for one in found.values():
            one.process.communicate()
    return measured_here(str(section(found, steps, tokens)))


def prepare(folder: Path, base: Path, text: Path, steps: int, tokens: int) -> None:
    """Write the batches and the expert that every contender begins with."""
    loaded = load_base(base)
    wanted, ids = steps * ROWS * tokens, list[int]()
    for example in read_examples(text):
        ids += loaded.tokenizer.encode(text_of(example))
        if len(ids) >= wanted:
            break
    rows = torch.tensor(ids[:wanted]).view(steps, ROWS, tokens)
    write_json(folder / "batches.json", {"batches": rows.tolist()})
    (folder / "expert").mkdir()
    save_expert(folder / "expert", fresh(loaded.decoder), loaded.fingerprint, {})


def section(found: dict[str, Process], steps: int, tokens: int) -> Section:
    theirs = found["Trainer"]
    lines = [
        f"SmolLM2-135M in float32, rank {RANK} on all targets, {ROWS} x {tokens} tokens of WikiText-2 a step, {steps} "
        "steps. Peak: resident memory of the whole process; its libraries took `before` of it before a model was "
        "loaded. Time: of the processor, median of the steps after the first.",
        "",
        "| contender | before | peak | / Trainer | s a step | / Trainer | largest difference of a loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found.values():
        lines.append(
            f"| {one.name} | {one.rows[0]['first'] / 1e6:.0f} MB | {one.peak / 1e6:.0f} MB | "
            f"{one.peak / theirs.peak:.2f} | {one.seconds:.2f} | {one.seconds / theirs.seconds:.2f} | "
            f"{one.furthest(theirs):.1e} |"
        )
    bars = []
    for name, memory, seconds in (("moesaic", 0.8, 1.0), ("moesaic, recompute: true", 0.5, 1.35)):
        one = found[name]
        for what, most, got in (
            ("peak memory / Trainer's", memory, one.peak / theirs.peak),
            ("time a step / Trainer's", seconds, one.seconds / theirs.seconds),
        ):
            bars.append(Bar(f"{name}: {what}", f"at most {most:.2f}", f"{got:.2f}", got <= most))
        far = one.furthest(theirs)
        bars.append(Bar(f"{name}: loss curve", "within 1e-4", f"{far:.1e}", far <= 1e-4))
    return Section("Training one LoRA expert", "\n".join(lines), bars)


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(description="One contender; the page starts it.")
    parser.add_argument("contender", choices=TRAIN)
    parser.add_argument("folder", type=Path)
    parser.add_argument("base", type=Path)
    told = parser.parse_args(given)
    train, recompute = TRAIN[told.contender]
    train(told.folder, told.base, read_json(told.folder / "batches.json")["batches"], recompute)


if __name__ == "__main__":
    main(sys.argv[1:])
