"""Loading a model of several hundred MB, its files in the page cache, beside safetensors' own reading; one thread.

`load_file` maps a file and reads nothing; so it is also timed with every value summed once, which is what checking all
values comes to. Times are the processor's, which other work on the machine disturbs least.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

import moesaic
from benchmarks.timing import laps
from moesaic.config import DecoderConfig
from moesaic.interop.decoders import write_decoder
from moesaic.model.decoder import Decoder, initialise
from moesaic.tensors.file_names import TENSORS

SIZES = {"vocab_size": 16_000, "hidden_size": 1024, "num_heads": 16, "num_kv_heads": 4, "intermediate_size": 2560}
LAYERS = {torch.float32: 12, torch.bfloat16: 26}
ROUNDS = 7


def report(quick: bool) -> str:
    rounds = 1 if quick else ROUNDS
    lines = [
        f"One thread, processor time, medians of {rounds} rounds in turns; over: over that of `load_file`, summed.",
        "`load_model` also builds the model, which takes some 0.1 ms a tensor, however large.",
        "",
        "| file | `load_file` ms | summed ms | `load_model` ms | over | summed, over |",
        "|---|---|---|---|---|---|",
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lines += [row(dtype, layers, rounds) for dtype, layers in LAYERS.items()]
    finally:
        torch.set_num_threads(threads)
    return "\n".join(lines) + "\n"


def row(dtype: torch.dtype, layers: int, rounds: int) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = folder / TENSORS
        torch.set_default_dtype(dtype)
        try:
            config = DecoderConfig(**SIZES, num_layers=layers, context=512)
            decoder = initialise(Decoder(config), torch.Generator().manual_seed(0))
        finally:
            torch.set_default_dtype(torch.float32)
        write_decoder(folder, decoder, {"eos_token_id": 0})
        count = len(load_file(file))
        times = {
            name: statistics.median(found) * 1e3
            for name, found in laps(contenders(folder, file), rounds, 1, time.process_time).items()
        }
        size = file.stat().st_size
    what, base = f"{size / 1e6:.0f} MB of {str(dtype).removeprefix('torch.')}, {count} tensors", times["file, summed"]
    over = [f"{times[name] / base:.2f}" for name in ("model", "model, summed")]
    return f"| {what} | {times['file']:.1f} | {base:.0f} | {times['model']:.0f} | {' | '.join(over)} |"


def contenders(folder: Path, file: Path) -> dict[str, Callable[[], object]]:
    return {
        "file": lambda: load_file(file),
        "file, summed": lambda: summed(load_file(file).values()),
        "model": lambda: moesaic.load_model(folder),
        "model, summed": lambda: summed(moesaic.load_model(folder).state_dict().values()),
    }


def summed(tensors: Iterable[torch.Tensor]) -> float:
    """Touches every value once; a tied head is stored, and summed, once."""
    return sum(float(tensor.sum()) for tensor in {tensor.data_ptr(): tensor for tensor in tensors}.values())
