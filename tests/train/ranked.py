"""One small training in whatever processes there are: those of `torchrun ranked.py FOLDER` run all of `SCENES`.

Writes what each leaves into the folder, and knows nothing about what it should be.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from moesaic.data.batches import Held, Packed, Tokens
from moesaic.errors import Interrupted
from moesaic.kinds.gates import plain
from moesaic.sections.training import Parallel, Train
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
    folder: Path, parallel: Parallel = "ddp", state: Path | None = None, stop: int | None = None, **sizes: int
) -> None:
    """Train and write the rows of the log and the weights; `state`: where to save and resume, until `stop` steps."""
    decoder = tiny_decoder(dtype=torch.float32, **sizes).train()
    model, ranks = spread(decoder, parallel)
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


def resumed(folder: Path, parallel: Parallel) -> None:
    """A training that stops half-way, and goes on from its state."""
    train(folder / "first", parallel, folder / "at", STOP)
    train(folder / "second", parallel, folder / "at")


def measure(folder: Path, parallel: Parallel, **sizes: int) -> None:
    """The bytes that each process holds, and sends in a step of one micro-batch, by its tensors and its sockets."""
    decoder = tiny_decoder(dtype=torch.float32, **WIDE, **sizes).train()
    model, ranks = spread(decoder, parallel)
    optimiser, whole = torch.optim.AdamW(decoder.parameters(), 0.01), [0]

    def look(*_: object) -> None:
        whole.append(size_of(p for p in decoder.parameters() if not hasattr(p, "to_local")))

    for layer in decoder.layers:
        layer.register_forward_pre_hook(look)
    for micro in (0, 1):  # the first step connects the processes
        optimiser.zero_grad()
        before = sent()
        with ranks.syncing(last=True):
            loss_of(model, plain)(batches()(2 * micro + ranks.rank))[0].backward()
        traffic = sent() - before
        gradients = size_of(ranks.local(p.grad) for p in decoder.parameters())
        optimiser.step()
    weights = size_of(ranks.local(p) for p in decoder.parameters())
    moments = size_of(ranks.local(m) for s in optimiser.state.values() for m in s.values() if m.ndim)
    found = {"weights": weights, "gradients": gradients, "moments": moments, "gathered": max(whole), "sent": traffic}
    folder.mkdir(exist_ok=True)
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


WIDE = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 64}


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def sent() -> int:
    """The bytes that this process has sent by TCP: `tcpi_bytes_sent` of Linux, for each of its sockets."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and os.readlink(entry).startswith("socket:"):
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                if one.family != socket.AF_UNIX and one.type == socket.SOCK_STREAM:
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 208)
                    total += int.from_bytes(info[200:208], sys.byteorder)
    return total


SPARSE = {"num_experts": 4, "experts_per_token": 2}


SCENES: dict[str, Callable[[Path], None]] = {
    "ddp": train,
    "fsdp": lambda folder: train(folder, "fsdp"),
    "tied": lambda folder: train(folder, "fsdp", tie_embeddings=True),
    "sparse-ddp": lambda folder: train(folder, "ddp", **SPARSE),
    "sparse-fsdp": lambda folder: train(folder, "fsdp", **SPARSE),
    "sparse-ep": lambda folder: train(folder, "ep", **SPARSE),
    "measured-ddp": lambda folder: measure(folder, "ddp"),
    "measured-fsdp": lambda folder: measure(folder, "fsdp"),
    "measured-ep": lambda folder: measure(folder, "ep", **SPARSE),
    "ddp-resumed": lambda folder: resumed(folder, "ddp"),
    "fsdp-resumed": lambda folder: resumed(folder, "fsdp"),
    "ddp-left": lambda folder: train(folder, "ddp", folder / "at", STOP),
    "fsdp-left": lambda folder: train(folder, "fsdp", folder / "at", STOP),
    "ddp-taken-up": lambda folder: train(folder, "ddp", folder.parent / "one-for-ddp" / "at"),
    "fsdp-taken-up": lambda folder: train(folder, "fsdp", folder.parent / "one-for-fsdp" / "at"),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined():
        for name, scene in SCENES.items():
            scene(Path(sys.argv[1]) / name)
            torch.distributed.barrier()
