"""Model folders that no honest tool writes, each made by a few lines; and a process whose children open them.

Knows nothing about what should be said: the tests look at that. Speaks JSON, a line per order and answer.
"""

import json
import os
import resource
import shutil
import signal
import socket
import string
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import MoesaicError
from moesaic.files import MANIFEST
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

MODEL, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
MEMORY = 256 << 20
PATIENCE = 20
"""Seconds of the processor after which a child counts as hanging: ten times what the dearest case needs."""


@dataclass(frozen=True)
class Case:
    """What is done to a good folder, and which file and field must be named for it; "" where there is no field.

    `what`: what else the error must say.
    """

    spoil: Callable[[Path], None]
    file: str
    field: str = ""
    expert: bool = False
    what: str = ""


# --- the bytes of a safetensors file ----------------------------------------------------------------------------------


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """A file of a header, given as bytes or not, and data; `length`: what it says of the header's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes the header, and nothing else."""

    def spoil(folder: Path) -> None:
        found, data = parts(folder / MODEL)
        change(found)
        (folder / MODEL).write_bytes(joined(found, data))

    return spoil


def tensor(**facts: Any) -> Callable[[Path], None]:
    """Changes what the header says of one tensor; `...` takes a key away."""

    def change(found: dict[str, Any]) -> None:
        new = {**found[NORM], **facts}
        found[NORM] = {key: value for key, value in new.items() if value is not ...}

    return header(change)


def text(change: Callable[[str], str | bytes], length: int | None = None) -> Callable[[Path], None]:
    """Changes the header as text."""

    def spoil(folder: Path) -> None:
        found, data = parts(folder / MODEL)
        new = change(json.dumps(found))
        (folder / MODEL).write_bytes(joined(new.encode() if isinstance(new, str) else new, data, length))

    return spoil


def file(change: Callable[[bytes], bytes], name: str = MODEL) -> Callable[[Path], None]:
    """Changes a whole file."""

    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def values(value: float, name: str = NORM) -> Callable[[Path], None]:
    """Puts a value into a tensor."""

    def spoil(folder: Path) -> None:
        found, data = parts(folder / MODEL)
        begin = found[name]["data_offsets"][0]
        raw = torch.tensor([value]).numpy().tobytes()
        (folder / MODEL).write_bytes(joined(found, data[: begin + 4] + raw + data[begin + 8 :]))

    return spoil


def moved(by: int, name: str = Q) -> Callable[[Path], None]:
    """Moves a tensor's data, its length kept."""
    return header(lambda found: found[name].update(data_offsets=[at + by for at in found[name]["data_offsets"]]))


def renamed(name: str) -> Callable[[Path], None]:
    return header(lambda found: found.update({name: found.pop(NORM)}))


def empty(count: int) -> dict[str, Any]:
    return {f"{i:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}


def alone(found: dict[str, Any] | bytes) -> Callable[[Path], None]:
    """A file that is a header without data."""
    return lambda folder: (folder / MODEL).write_bytes(joined(found, b"")) and None


LETTERS = string.ascii_letters + string.digits
SHORT = islice(("".join(word) for size in range(1, 5) for word in product(LETTERS, repeat=size)), 930_000)
WIDE = ('{"😀":0,' + "".join(f'"{word}":0,' for word in SHORT) + '"a":0}').encode()  # wide letters, and a key twice
LISTS = b'{"a":[' + b"[]," * 2_700_000 + b"[]]}"
DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
DIGITS = b"1" * 5000
NOTHING = {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}

TENSORS: dict[str, Case] = {
    "empty": Case(file(lambda raw: b""), MODEL),
    "four bytes": Case(file(lambda raw: raw[:4]), MODEL),
    "only a length": Case(file(lambda raw: raw[:8]), MODEL),
    "half a header": Case(file(lambda raw: raw[:200]), MODEL),
    "data cut off": Case(file(lambda raw: raw[:-1]), MODEL, what="not fully covered"),
    "data behind the last tensor": Case(file(lambda raw: raw + b"\0"), MODEL, what="not fully covered"),
    "header of 2^63 bytes": Case(text(str, 1 << 63), MODEL),
    "header of 101 MB": Case(text(str, 101_000_000), MODEL),
    "header of 0 bytes": Case(text(str, 0), MODEL),
    "header longer by 4": Case(file(lambda raw: joined(raw[8:], b"", int.from_bytes(raw[:8], "little") + 4)), MODEL),
    "header of 9 MiB": Case(text(lambda said: said + " " * (9 << 20)), MODEL),
    "header of no text": Case(text(lambda said: b'{"\xff":1}'), MODEL),
    "header that is a list": Case(text(lambda said: f"[{said}]"), MODEL),
    "header that begins with a space": Case(text(lambda said: f" {said}"), MODEL),
    "header that is cut off": Case(text(lambda said: said[:-9]), MODEL),
    "two headers": Case(text(lambda said: said + said), MODEL),
    "byte order mark": Case(text(lambda said: "\ufeff" + said), MODEL),
    "nothing but braces": Case(text(lambda said: "{" * 100_000), MODEL),
    "nested 200,000 deep": Case(alone(DEEP), MODEL),
    "millions of lists": Case(alone(LISTS), MODEL),
    "930,000 keys": Case(alone(WIDE), MODEL),
    "100,001 tensors": Case(alone(empty(100_001)), MODEL),
    "150,000 tensors": Case(alone(empty(150_000)), MODEL),
    "100,000 tensors of none of ours": Case(alone(empty(100_000)), MODEL, "model."),
    "number of 5000 digits": Case(alone(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}' % DIGITS), MODEL),
    "NaN in the header": Case(tensor(shape=float("nan")), MODEL),
    "a tensor twice": Case(text(lambda said: said[:-1] + f', "{NORM}": {json.dumps(0)}}}'), MODEL),
    "a tensor twice, alike": Case(text(lambda said: said[:-1] + "," + said[1:]), MODEL),
    "a key twice": Case(text(lambda said: said.replace('"dtype"', '"dtype": "F32", "dtype"', 1)), MODEL),
    "a name of nothing": Case(renamed(""), MODEL),
    "a name that climbs": Case(renamed("../../etc/x\0y"), MODEL, "../../etc/x"),
    "a name of 300": Case(renamed("a" * 300), MODEL, "aaa"),
    "a name in another script": Case(renamed("вес"), MODEL, "вес"),
    "a name with a line break": Case(renamed(NORM + "\n"), MODEL, NORM),
    "unknown type": Case(tensor(dtype="F4"), MODEL, what="invalid shape, data type, or offset"),
    "type that is a list": Case(tensor(dtype=["F32"]), MODEL, what="invalid type: sequence"),
    "no type": Case(tensor(dtype=...), MODEL, what="missing field `dtype`"),
    "no shape": Case(tensor(shape=...), MODEL, what="missing field `shape`"),
    "no place": Case(tensor(data_offsets=...), MODEL, what="missing field `data_offsets`"),
    "one key more": Case(tensor(code="x"), MODEL, NORM),
    "a tensor that is null": Case(header(lambda found: found.update({NORM: None})), MODEL, what="invalid type: null"),
    "negative length": Case(tensor(shape=[-32]), MODEL, what="integer `-32`"),
    "two negative lengths": Case(tensor(shape=[-4, -8]), MODEL, what="integer `-4`"),
    "length with a point": Case(tensor(shape=[32.0]), MODEL, what="`32.0`"),
    "length of true": Case(tensor(shape=[True, 32]), MODEL, what="boolean `true`"),
    "shape of text": Case(tensor(shape="32"), MODEL, what="expected a sequence"),
    "shape beyond 64 bits": Case(tensor(shape=[1 << 33, 1 << 33]), MODEL, what="overflow"),
    "shape that wraps around to 32": Case(tensor(shape=[(1 << 64) + 32]), MODEL, what="1.8446744073709552e+19"),
    "nothing of far too much": Case(header(lambda found: found.update(more=NOTHING)), MODEL, "more: shape"),
    "300 dimensions": Case(tensor(shape=[1] * 300 + [32]), MODEL, f"{NORM}: shape"),
    "longer than its data": Case(tensor(shape=[33]), MODEL, what="invalid shape, data type, or offset"),
    "half the type": Case(tensor(dtype="F16"), MODEL, what="invalid shape, data type, or offset"),
    "place before the file": Case(tensor(data_offsets=[-128, 0]), MODEL, what="integer `-128`"),
    "place backwards": Case(tensor(data_offsets=[256, 128]), MODEL, what=NORM),
    "place of three": Case(tensor(data_offsets=[0, 128, 999]), MODEL, what="invalid length 3"),
    "place with a point": Case(tensor(data_offsets=[0.0, 128.0]), MODEL, what="`0.0`"),
    "place behind the file": Case(moved(1 << 40), MODEL, what="`model."),
    "place of 2^64": Case(tensor(data_offsets=[1 << 64, (1 << 64) + 128]), MODEL, what="1.8446744073709552e+19"),
    "overlap": Case(moved(-4), MODEL, what="`model."),
    "gap": Case(moved(4), MODEL, what="`model."),
    "two tensors in one place": Case(header(lambda found: found.update(more=dict(found[NORM]))), MODEL, what="`mo"),
    "metadata of numbers": Case(
        header(lambda found: found.update(__metadata__={"format": 1})), MODEL, what="expected a string"
    ),
    "metadata in metadata": Case(
        header(lambda found: found.update(__metadata__={"a": {}})), MODEL, what="expected a string"
    ),
    "metadata that is a list": Case(header(lambda found: found.update(__metadata__=[])), MODEL, what="expected a map"),
    "NaN": Case(values(float("nan")), MODEL, NORM),
    "infinity": Case(values(float("-inf"), Q), MODEL, Q),
    "pickle": Case(lambda folder: torch.save({}, folder / MODEL), MODEL),
    "pointer of git-lfs": Case(
        file(lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), MODEL
    ),
    "page of a login": Case(file(lambda raw: b"<!doctype html><html>log in</html>"), MODEL),
}


# --- folders ----------------------------------------------------------------------------------------------------------


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Puts something else in a file's place."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def outside(path: Path) -> None:
    """A good file, outside the folder, and a link to it."""
    there = path.parent.with_name(f"{path.parent.name}-elsewhere")
    shutil.copytree(GOOD / "base", there)
    path.symlink_to(there / path.name)


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def only(name: str) -> Callable[[Path], None]:
    """Weights of another format, and no others."""
    return lambda folder: (folder / MODEL).rename(folder / name) and None


def sharded(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Two shards and an index, which is then changed."""

    def spoil(folder: Path) -> None:
        data = parts(folder / MODEL)[1]
        tensors = load((folder / MODEL).read_bytes())
        (folder / MODEL).unlink()
        shards = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
        for shard, names in shards.items():
            (folder / shard).write_bytes(save({name: tensors[name] for name in names}))
        listed = {name: shard for shard, names in shards.items() for name in names}
        index = {"metadata": {"total_size": len(data)}, "weight_map": listed}
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return spoil


def weight_map(**new: Any) -> Callable[[Path], None]:
    return sharded(lambda index: index["weight_map"].update({NORM: new["norm"]}))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "x")


FOLDERS: dict[str, Case] = {
    **{
        f"{what} as {name}": Case(instead(name, make), name)
        for name in (MODEL, CONFIG)
        for what, make in {
            "a pipe": os.mkfifo,
            "a socket": listening,
            "a folder": Path.mkdir,
            "a link to a device": lambda path: path.symlink_to("/dev/zero"),
            "a link to a pipe": lambda path: os.mkfifo(path.with_name("p")) or path.symlink_to("p"),
            "a link to nothing": lambda path: path.symlink_to("nothing"),
            "a link to itself": lambda path: path.symlink_to(path.name),
            "a link out of the folder": outside,
            "a link to a password": lambda path: path.symlink_to("/etc/passwd"),
            "nothing": lambda path: None,
        }.items()
    },
    "a zip as weights": Case(instead(MODEL, zipped), MODEL),
    **{
        f"only {name}": Case(only(name), name)
        for name in (
            *("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "flax_model.msgpack"),
            *("tf_model.h5", "model-q4.gguf", "model.safetensors.gz", "model.zip", "model.tar"),
        )
    },
    "shard that is missing": Case(weight_map(norm="c.safetensors"), "c.safetensors"),
    "shard above the folder": Case(weight_map(norm="../a.safetensors"), INDEX, NORM),
    "shard by its full path": Case(weight_map(norm="/etc/passwd"), INDEX, NORM),
    "shard that is a pickle": Case(weight_map(norm="pytorch_model.bin"), INDEX, NORM),
    "shard that is a number": Case(weight_map(norm=7), INDEX, NORM),
    "tensor in two shards": Case(sharded(lambda index: index["weight_map"].pop(NORM)), "b.safetensors", NORM),
    "tensor in no shard": Case(
        sharded(lambda index: index["weight_map"].update(more="a.safetensors")), "a.safetensors", "more"
    ),
    "no list of shards": Case(sharded(lambda index: index.update(weight_map=[])), INDEX, "weight_map"),
}


# --- config.json ------------------------------------------------------------------------------------------------------


def config(name: str = CONFIG, **changes: Any) -> Callable[[Path], None]:
    """Changes fields; `...` takes one away."""

    def spoil(folder: Path) -> None:
        found = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

    return spoil


def said(change: Callable[[str], str | bytes], name: str = CONFIG) -> Callable[[Path], None]:
    """Changes a configuration as text."""

    def spoil(folder: Path) -> None:
        new = change((folder / name).read_text())
        (folder / name).write_bytes(new.encode() if isinstance(new, str) else new)

    return spoil


def field(name: str, value: Any, file: str = CONFIG) -> Case:
    return Case(config(file, **{name: value}), file, name, expert=file == ADAPTER_CONFIG)


CONFIGS: dict[str, Case] = {
    "config of 2 MiB": Case(said(lambda text: text + " " * (2 << 20)), CONFIG),
    "config of a list": Case(said(lambda text: f"[{text}]"), CONFIG),
    "config with a byte order mark": Case(said(lambda text: "\ufeff" + text), CONFIG),
    "config of no text": Case(said(lambda text: b"\xff\xfe" + text.encode("utf-16-le")), CONFIG),
    "config nested deep": Case(said(lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000), CONFIG),
    "config of nested tables": Case(said(lambda text: '{"a":' * 300 + "1" + "}" * 300), CONFIG, "a"),
    "config with a key twice": Case(said(lambda text: '{"hidden_size": 1, ' + text.lstrip()[1:]), CONFIG),
    "config with NaN": Case(config(rms_norm_eps=float("nan")), CONFIG),
    "config with 5000 digits": Case(said(lambda text: text.replace("265", "1" * 5000)), CONFIG),
    "config with 1e999": Case(said(lambda text: text.replace("265", "1e999")), CONFIG),
    "billion layers": field("num_hidden_layers", 10**9),
    "a thousand layers": Case(config(num_hidden_layers=1000), MODEL, "model.layers."),
    "no layers": field("num_hidden_layers", 0),
    "negative size": field("hidden_size", -32),
    "size with a point": field("hidden_size", 32.0),
    "size of true": field("num_key_value_heads", True),
    "size of text": field("hidden_size", "32"),
    "size of a list": field("intermediate_size", [64]),
    "words beyond memory": field("vocab_size", 10**12),
    "memory promised, not held": Case(config(vocab_size=1 << 24, hidden_size=1 << 17, head_dim=8), MODEL, "model."),
    "context beyond memory": field("max_position_embeddings", 10**15),
    "heads that do not divide": field("num_key_value_heads", 3),
    "heads beyond measure": field("num_attention_heads", 10**6),
    "head of 10^9": field("head_dim", 10**9),
    "rotation of 0": field("rope_theta", 0),
    "rotation of text": field("rope_theta", "1e4"),
    "rotation of a list": field("rope_parameters", [1]),
    "rotation by an unknown rule": Case(config(rope_parameters={"rope_type": "yarn", "factor": 2}), CONFIG, "rope_"),
    "rotation by text": Case(config(rope_scaling={"rope_type": "linear", "factor": "x"}), CONFIG, "factor"),
    "norm of text": field("rms_norm_eps", "small"),
    "truth of text": field("tie_word_embeddings", "false"),
    "kinds of layers": field("layer_types", {"0": "full_attention"}),
    "end of text as text": field("eos_token_id", "</s>"),
    "end of text beyond all": field("eos_token_id", [10**12]),
    "family as a list": field("model_type", ["llama"]),
    "family unknown": field("model_type", "gpt_of_mine"),
    "family unknown, with code": Case(
        config(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling.Mine"}), CONFIG, "model_type"
    ),
    "quantised": field("quantization_config", {"quant_method": "gptq"}),
    "adapter config of 2 MiB": Case(
        said(lambda text: text + " " * (2 << 20), ADAPTER_CONFIG), ADAPTER_CONFIG, expert=True
    ),
    "rank of 10^9": field("r", 10**9, ADAPTER_CONFIG),
    "rank of 0": field("r", 0, ADAPTER_CONFIG),
    "rank with a point": field("r", 2.0, ADAPTER_CONFIG),
    "rank of true": field("r", True, ADAPTER_CONFIG),
    "alpha of text": field("lora_alpha", "16", ADAPTER_CONFIG),
    "alpha beyond float32": field("lora_alpha", 1e300, ADAPTER_CONFIG),
    "ranks as a list": field("rank_pattern", [2], ADAPTER_CONFIG),
    "adapter as a pipe": Case(
        lambda folder: (folder / ADAPTER).unlink() or os.mkfifo(folder / ADAPTER), ADAPTER, "", expert=True
    ),
    "adapter as a pickle": Case(
        lambda folder: (folder / ADAPTER).rename(folder / "adapter_model.bin") and None,
        "adapter_model.bin",
        "",
        expert=True,
    ),
}

CASES = {**TENSORS, **FOLDERS, **CONFIGS}


# --- the process ------------------------------------------------------------------------------------------------------

GOOD = Path()


def make_good(root: Path) -> None:
    """A base and an expert as other people's tools would leave them: without our manifest."""
    global GOOD
    GOOD = root / "good"
    for name in ("base", "expert"):
        (GOOD / name).mkdir(parents=True)
    tokenizer = Tokenizer.train(["the sum of two and two is four"], 265)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    save_base(GOOD / "base", decoder, tokenizer, {})
    save_expert(GOOD / "expert", toy_expert(decoder, 1, rank=2), "0" * 64, {})
    for name in ("base", "expert"):
        (GOOD / name / MANIFEST).unlink()
    load_base(GOOD / "base")
    load_expert(GOOD / "expert")


def size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def attempt(name: str | None, folder: Path) -> tuple[int, dict[str, Any]]:
    """Opens a folder of a case (None: a good one) in bounded memory; tells how it was refused."""
    case = CASES[name] if name else Case(lambda folder: None, "")
    shutil.copytree(GOOD / ("expert" if case.expert else "base"), folder)
    case.spoil(folder)
    resource.setrlimit(resource.RLIMIT_AS, (size() + MEMORY, size() + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
    signal.alarm(120)  # ends a child that waits for something
    try:
        load_expert(folder) if case.expert else load_base(folder)
        status, told = 0, {}
    except MoesaicError as error:
        where = {"file": Path(str(error.path)).name, "field": error.field or ""}
        status, told = error.exit_code, {"kind": type(error).__name__, "error": str(error), **where}
    except BaseException as error:
        status, told = 98, {"error": repr(error)}
    return status, told


def forked(name: str | None, folder: Path) -> dict[str, Any]:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        status, told = attempt(name, folder)
        os.write(writing, json.dumps(told).encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = json.loads(pipe.read() or "{}")
    _, result = os.waitpid(pid, 0)
    return {"status": os.waitstatus_to_exitcode(result), "error": "", **told}


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_good(Path(sys.argv[1]))
    for count, line in enumerate(sys.stdin):
        print(json.dumps(forked(json.loads(line), Path(sys.argv[1]) / str(count))), flush=True)
