"""Rows of real sizes before the first step of a training: seconds of each stage, memory, a second start, and workers.

Conversations are those of sgd_dialogues, repeated with other words in them. The base has few parameters, so that its
weights do not hide the memory of the rows, and SmolLM2's tokenizer and chat template.
"""

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from benchmarks.encoding import rendered
from benchmarks.page import Bar, Options, Page, Section, measured_here
from benchmarks.timing import alternate
from moesaic.artefacts.base import save_base
from moesaic.config import sized
from moesaic.data.rows import Example, read_examples, streamed_rows
from moesaic.data.stored_rows import RowFile, StoredRows
from moesaic.data.stored_tokens import encode_into
from moesaic.model.decoder import Decoder, initialise
from moesaic.recipe import read
from moesaic.runs.directory import RunDir
from moesaic.stages import experts, verbs
from moesaic.tasks import Address, Run, open_run
from moesaic.tokenizer import Message, Tokenizer

MEGABYTES, SAMPLE, ROUNDS, LENGTH, WORKERS, BATCHES = 200, 4_000, 3, 256, 4, 50
MEGA = 1 << 20
RECIPE = """
name: sizes
workers: 1
base: {path: base}
train: {steps: 2, batch: 8, length: 256}
experts: {talk: {kind: lora, data: {train: train.jsonl, test: test.jsonl}}}
router: {kind: keyword}
evaluate: {controls: []}
"""


def page(options: Options) -> Page:
    """The rates of encoding, the stages of two starts, and the memory of workers."""
    size, sample, rounds = (1, 200, 1) if options.quick else (MEGABYTES, SAMPLE, ROUNDS)
    source, model = options.shared / "data" / "sgd_dialogues", options.shared / "models" / "smollm2-135m"
    with TemporaryDirectory() as at:
        folder = Path(at)
        written = {
            name: write_rows(source / f"{name}.jsonl", folder / f"{name}.jsonl", mega)
            for name, mega in (("train", size), ("test", size / 100))
        }
        write_base(folder / "base", model)
        (folder / "recipe.yaml").write_text(RECIPE)
        rates = encoding(folder, model, sample, rounds)
        first, second = (json.loads(child(folder, "start").communicate()[0]) for _ in range(2))
        workers = [json.loads(one.communicate()[0]) for one in [child(folder, "work") for _ in range(WORKERS)]]
        side = beside(folder, workers)
    sections = [rates, starts(written["train"], first, second), side]
    return measured_here("\n".join(map(str, sections)))


# --- what is measured


def write_rows(source: Path, target: Path, megabytes: float) -> int:
    """Write so many megabytes of conversations, one in four words of which is drawn anew, and count the answers."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    draw, size, answers, number = random.Random(target.name), 0, 0, 0
    with target.open("w") as file:
        while size < megabytes * MEGA:
            messages = []
            for message in rows[number % len(rows)]["messages"]:
                words = message["content"].split(" ")
                for _ in range(max(1, len(words) // 4)):
                    words[draw.randrange(len(words))] = f"{draw.choice(words)}{draw.randrange(1000)}"
                messages.append({"role": message["role"], "content": " ".join(words)})
                answers += message["role"] == "assistant"
            number += 1
            size += file.write(json.dumps({"messages": messages}) + "\n")
    return answers


def write_base(folder: Path, model: Path) -> None:
    tokenizer = Tokenizer.load(model, eos=2)
    decoder = Decoder(replace(sized("nano", tokenizer.vocab_size), context=2 * LENGTH))
    initialise(decoder, torch.Generator().manual_seed(0))
    folder.mkdir()
    save_base(folder, decoder, tokenizer, {})


def child(folder: Path, what: str) -> "subprocess.Popen[str]":
    """A process of its own that prints what it found."""
    command = [sys.executable, "-m", "benchmarks.data_sizes", what, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def worker_of(folder: Path) -> dict[str, Any]:
    """The memory of a process that trains the only expert, before its first step."""
    before = memory()
    run = open_run(Address(RunDir(read(folder / "recipe.yaml"), folder / "run")))
    _ = run.models.base
    loaded = memory()
    draw(run)
    return {"before": before, "loaded": loaded, "after": memory()}


def draw(run: Run) -> None:
    """Take the batches of some steps."""
    plan = experts.plan_of(run, "talk")
    objective = run.task.trainer(plan).objective(plan)
    for step in range(BATCHES):
        objective.batch(step)


def stages_of(folder: Path) -> dict[str, Any]:
    """Seconds of everything before the first step of the only expert, and the memory of this process."""
    seconds, before, begun = dict[str, float](), memory(), time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal begun
        now = time.perf_counter()
        seconds[stage], begun = round(now - begun, 2), now

    with verbs.opened(read(folder / "recipe.yaml"), folder / "run", None) as bench:
        run = bench.run
        _ = run.models.base
        lap("base")
        _ = run.materials.domains
        lap("rows")
        verbs.report_data(bench)
        lap("facts and duplicates")
        _ = bench.expert("talk").key
        lap("key")
        run.task.trainer(experts.plan_of(run, "talk"))
        lap("tokens")
        draw(run)
        lap(f"{BATCHES} batches")
    return {"seconds": seconds, "before": before, "after": memory()}


def memory() -> dict[str, int]:
    """The resident memory of this process in megabytes: at most, and what no other process shares."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon"))}
    return {"peak": int(found["VmHWM"]) // 1024, "own": int(found["RssAnon"]) // 1024}


# --- sections


def encoding(folder: Path, model: Path, sample: int, rounds: int) -> Section:
    """Rates of encoding into files, against the library's batch call on rendered texts."""
    library = Library.from_file(str(model / "tokenizer.json"))
    theirs, ours = AutoTokenizer.from_pretrained(model), Tokenizer.load(model, eos=2)
    talks = [one for row in islice(streamed_rows(folder / "train.jsonl"), sample // 8) for one in row]
    pairs = folder / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": one.messages[-1].content, "response": one.response}) + "\n" for one in talks)
    )
    bars, number = [], 0
    for name, examples in (("answers of conversations", talks), ("pairs of prompt and response", read_examples(pairs))):
        rows = stored(folder / f"{len(bars)}.rows", examples)
        texts = [rendered(theirs, one if one.messages else talked(one)) for one in rows]

        def write(rows: StoredRows = rows) -> None:
            nonlocal number
            (at := folder / f"tokens-{(number := number + 1)}").mkdir()
            encode_into(at, rows, ours, LENGTH, 1)

        calls = {"library": lambda texts=texts: [one.ids for one in library.encode_batch(texts)], "ours": write}
        took = alternate(calls, rounds, inner=1)
        share = took["library"] / took["ours"]
        rates = f"{len(rows) / took['ours']:,.0f} rows a second, {share:.2f} of {len(rows) / took['library']:,.0f}"
        bars.append(Bar(f"{len(rows):,} {name}", "at least 0.80 of the library", rates, share >= 0.8))
    text = (
        "From rows on disk to tokens on disk, rendering included, against the batch call of `tokenizers` on texts that "
        f"are rendered and in memory. Median of {rounds} rounds in turns."
    )
    return Section("Encoding", text, bars)


def talked(example: Example) -> Example:
    """A pair as the first turn of a conversation."""
    return replace(example, messages=(Message("user", example.prompt),))


def stored(path: Path, examples: list[Example]) -> StoredRows:
    """Examples as rows of a file."""
    groups: dict[str, list[Example]] = {}
    for one in examples:
        groups.setdefault(one.group, []).append(one)
    with RowFile(path) as shelf:
        return shelf.sorted({group: shelf.add(row) for group, row in groups.items()})


def starts(answers: int, first: dict[str, Any], second: dict[str, Any]) -> Section:
    """The stages of both starts."""
    lines = ["| stage | first start, s | second start, s |", "|---|---|---|"]
    lines += [f"| {stage} | {took} | {second['seconds'][stage]} |" for stage, took in first["seconds"].items()]
    added = [one["after"]["peak"] - one["before"]["peak"] for one in (first, second)]
    again = sum(took for stage, took in second["seconds"].items() if stage != "base")
    bars = [
        Bar("peak memory over the imports", "less than 600 MB", f"{added[0]} MB", added[0] < 600),
        Bar("second start, without the base", "less than 2 s", f"{again:.1f} s", again < 2),
    ]
    text = (
        f"{answers:,} answers of conversations for training; imports are not counted, and other work of the machine is."
        "\n\n" + "\n".join(lines)
    )
    return Section("Two starts of one run", text, bars)


def beside(folder: Path, workers: list[dict[str, Any]]) -> Section:
    """The memory of processes side by side."""
    base, rows = (
        max(one[then]["own"] - one[before]["own"] for one in workers)
        for then, before in (("loaded", "before"), ("after", "loaded"))
    )
    size = sum(path.stat().st_size for path in (folder / "run" / "rows").rglob("*.bin")) // MEGA
    text = (
        f"{len(workers)} processes at once, each with the base, all rows and {BATCHES} batches, without a step. "
        f"Base and tokenizer take {base} MB of each process's own memory, whatever the number of rows."
    )
    found = f"{rows} of {size} MB: {rows / size:.1%}"
    return Section("Workers", text, [Bar("own memory for the rows", "less than 5%", found, rows < size / 20)])


if __name__ == "__main__":
    print(json.dumps({"start": stages_of, "work": worker_of}[sys.argv[1]](Path(sys.argv[2]))))
