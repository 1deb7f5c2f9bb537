"""A run directory as a record to commit, and the differences between two records.

Reads files only: manifests and evaluation.json as JSON, weights by safetensors. Knows nothing about the package.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from operator import eq
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

Record = dict[str, Any]
Figures = dict[str, Any]

TOLERANCE = 3e-4
"""Between two arithmetics: of a figure, absolute and relative; of a tensor's sums, relative to its absolute sum.

Ten times what was measured on one processor under three arithmetics (avx2, default, not pinned)."""
CLOCK = {"timing", "digest"}
"""Keys of evaluation.json that depend on the clock: the durations, and the hash of the file with them."""
HASHES = {"evaluation.stage_key", "evaluation.mixture"}
"""Figures of evaluation.json that are hashes of weights."""
NUMBER = re.compile(r"\d+(\.\d+)?")
DIGITS = 7


def record_of(run: Path) -> Record:
    """Read a run: stage keys and weights of every part, and the evaluation without what depends on the clock."""
    paths = sorted(path for path in published(run) if path.suffix in (".json", ".safetensors"))
    keys, weights, first = {}, {}, dict[str, str]()
    for path in paths:
        name = path.relative_to(run).as_posix()
        if path.name == "manifest.json" and (key := json.loads(path.read_text()).get("stage_key")):
            keys[name.removesuffix("/manifest.json")] = key
        if path.suffix == ".safetensors":
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            copied = {"same_as": first[sha256]} if sha256 in first else {"tensors": sums_of(path)}
            weights[name] = {"sha256": sha256, **copied}
            first.setdefault(sha256, name)
    evaluation = json.loads((run / "evaluation.json").read_text())
    kept = {key: value for key, value in evaluation.items() if key not in CLOCK}
    contenders = [*evaluation["controls"]]  # in their order, which the sorted keys of a record lose
    return {"stage_keys": keys, "weights": weights, "evaluation": kept, "contenders": contenders}


def published(folder: Path) -> Iterator[Path]:
    """Find the files of a run's published versions: links are followed, hidden folders are not entered."""
    for at, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(at) / name for name in files)


def sums_of(path: Path) -> dict[str, list[float]]:
    """Sum each tensor of a file, and its absolute values."""
    doubles = {name: tensor.double() for name, tensor in sorted(load_file(path).items())}
    return {
        name: [float(f"{total:.{DIGITS}g}") for total in (x.sum().item(), x.abs().sum().item())]
        for name, x in doubles.items()
    }


def flat(value: Any, at: str) -> Figures:
    """Every leaf of nested values by its path."""
    if isinstance(value, dict):
        return {path: leaf for key, inner in value.items() for path, leaf in flat(inner, f"{at}.{key}").items()}
    if isinstance(value, list):
        return {path: leaf for n, inner in enumerate(value) for path, leaf in flat(inner, f"{at}[{n}]").items()}
    return {at: value}


def exact_differences(recorded: Record, found: Record) -> list[str]:
    """Compare stage keys, the bytes of weights and every figure; one line for each that differs."""
    return differences(exact_figures(recorded), exact_figures(found), eq)


def exact_figures(record: Record) -> Figures:
    weights = {f"weights {name}": file["sha256"] for name, file in record["weights"].items()}
    return keys_of(record) | weights | figures_of(record)


def close_differences(recorded: Record, found: Record, rounded_keys: list[str]) -> list[str]:
    """Compare what other arithmetic leaves alike: keys that hash no weights exactly, figures and sums within TOLERANCE.

    `rounded_keys`: the parts whose keys hash weights.
    """
    hashes = HASHES | {key_name(part) for part in rounded_keys}
    keys, figures, tensors = (
        [{name: value for name, value in read(record).items() if name not in hashes} for record in (recorded, found)]
        for read in (keys_of, figures_of, tensors_of)
    )
    return differences(*keys, eq) + differences(*figures, close) + differences(*tensors, close_sums)


def figures_of(record: Record) -> Figures:
    return flat(record["evaluation"], "evaluation") | flat(record["contenders"], "contenders")


def key_name(part: str) -> str:
    return f"stage key of {part}"


def keys_of(record: Record) -> Figures:
    return {key_name(part): key for part, key in record["stage_keys"].items()}


def tensors_of(record: Record) -> Figures:
    """The sums of every tensor, and the file that a copy equals."""
    copies = {f"weights {name}": file["same_as"] for name, file in record["weights"].items() if "same_as" in file}
    return copies | {
        f"weights {name}: {tensor}": sums
        for name, file in record["weights"].items()
        for tensor, sums in file.get("tensors", {}).items()
    }


def close(recorded: Any, found: Any) -> bool:
    """Compare two figures; numbers within a text are left out, as the figures that they repeat are compared."""
    if isinstance(recorded, float) and isinstance(found, float):
        return abs(recorded - found) <= TOLERANCE * max(1.0, abs(recorded))
    if isinstance(recorded, str) and isinstance(found, str):
        return NUMBER.sub("#", recorded) == NUMBER.sub("#", found)
    return type(recorded) is type(found) and recorded == found


def close_sums(recorded: Any, found: Any) -> bool:
    """Compare [sum, absolute sum] of a tensor, both relative to the absolute sum; the name of a copied file exactly."""
    if isinstance(recorded, str) or isinstance(found, str):
        return recorded == found
    return all(abs(a - b) <= TOLERANCE * recorded[1] for a, b in zip(recorded, found, strict=True))


def differences(recorded: Figures, found: Figures, alike: Callable[[Any, Any], bool]) -> list[str]:
    """One line for each figure that is missing, new or not alike."""
    lines = [f"{name}: recorded, not found" for name in recorded.keys() - found.keys()]
    lines += [f"{name}: found {found[name]!r}, not recorded" for name in found.keys() - recorded.keys()]
    both = recorded.keys() & found.keys()
    changed = [name for name in both if not alike(recorded[name], found[name])]
    return sorted(lines + [f"{name}: recorded {recorded[name]!r}, found {found[name]!r}" for name in changed])
