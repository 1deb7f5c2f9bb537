"""One small training in whatever processes there are: those of `torchrun ranked.py FOLDER` run all of `SCENES`.

Writes what each leaves into the folder, and knows nothing about what it should be.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from moesaic.data.batches import Held, Packed, Tokens
from moesaic.errors import Interrupted
from moesaic.kinds.gates import plain
from moesaic.sections.training import Train
from moesaic.tensors.tensors import write_tensors
from moesaic.testing import tiny_decoder
from moesaic.train.checkpoint import Checkpoint
from moesaic.train.language import loss_of
from moesaic.train.loop import fit
from moesaic.train.ranks import Ranks, joined, spread

STEPS, STOP = 6, 3


def batches() -> Packed:
    """Rows of 11 to 20 tokens, each of which follows its neighbour by a rule."""
    rows = [[(3 * start + 7 * i) % 61 for i in range(11 + start % 10)] for start in range(40)]
    return Packed(Held([Tokens(ids, 1, str(ids[0])) for ids in rows]), 12, 2, 5)


def train(
    folder: Path, sharded: bool = False, state: Path | None = None, stop: int | None = None, tie: bool = False
) -> None:
    """Train and write the rows of the log and the weights; `state`: where to save and resume, until `stop` steps."""
    decoder = tiny_decoder(dtype=torch.float32, tie_embeddings=tie).train()
    model, ranks = spread(decoder, sharded)
    keeper = checkpoint(state, stop) if state else None
    rows, packed = [], batches()

    def record(row: dict) -> None:
        rows.append({key: value for key, value in row.items() if key != "rate"})
        if keeper and ranks.main:
            keeper.log.append(row)

    parameters, seen = dict(decoder.named_parameters()), []
    settings = Train(steps=STEPS, accumulate=4, warmup=0.2, evaluate_every=3, weight_decay=0.1, clip=0.5)

    def loss(batch):
        seen.append(batch.ids.sum().item())
        return loss_of(model, plain)(batch)

    def validate() -> float:
        with torch.no_grad():
            return loss_of(model, plain)(packed(1000))[0].item()

    try:
        trained = fit(parameters, packed, loss, validate, settings, 0.01, record, 1, keeper, ranks=ranks, after=shares)
        tensors = trained.state
    except Interrupted:
        tensors = {}
    finally:
        if keeper:
            keeper.close()
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.main:
        write_tensors(folder / "weights.safetensors", tensors)
        (folder / "rows.json").write_text(json.dumps(rows))
    (folder / f"seen-{ranks.rank}.json").write_text(json.dumps(seen))


def shares(ranks: Ranks) -> dict[str, list[float]]:
    """What all processes count together, each once."""
    return {"together": ranks.summed(1.0, ranks.rank)}


def checkpoint(at: Path, stop: int | None) -> Checkpoint:
    def stopping() -> bool:
        made.steps = getattr(made, "steps", 0) + 1
        return made.steps == stop

    inputs, ignore = {"lr": 0.01}, (lambda text: None)
    files = at / "state", at / "log.jsonl"
    made = Checkpoint(*files, inputs, 1000.0, "restart", ignore, ignore, True, stopping, lambda: None)
    return made


def resumed(folder: Path, sharded: bool) -> None:
    """A training that stops half-way, and goes on from its state."""
    train(folder / "first", sharded, folder / "at", STOP)
    train(folder / "second", sharded, folder / "at")


SCENES: dict[str, Callable[[Path], None]] = {
    "copies": train,
    "pieces": lambda folder: train(folder, sharded=True),
    "tied": lambda folder: train(folder, sharded=True, tie=True),
    "copies-resumed": lambda folder: resumed(folder, sharded=False),
    "pieces-resumed": lambda folder: resumed(folder, sharded=True),
    "copies-left": lambda folder: train(folder, sharded=False, state=folder / "at", stop=STOP),
    "pieces-left": lambda folder: train(folder, sharded=True, state=folder / "at", stop=STOP),
    "copies-taken-up": lambda folder: train(folder, state=folder.parent / "one-for-copies" / "at"),
    "pieces-taken-up": lambda folder: train(folder, True, folder.parent / "one-for-pieces" / "at"),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined():
        for name, scene in SCENES.items():
            scene(Path(sys.argv[1]) / name)
            torch.distributed.barrier()
