"""Is a file read within its bounds, every number type dequantised, and everything else refused on one line?"""

import struct

import numpy as np
import pytest
import torch

from moesaic.errors import WeightsError
from moesaic.gguf import container
from moesaic.gguf.container import Given, read, write

VALUES = torch.arange(512, dtype=torch.float32).reshape(2, 256) / 512 - 0.5
KEYS = {"general.architecture": "llama", "a": 3, "b": 0.1, "c": True, "d": ["x", "é"], "e": [1, -2], "f": [0.5]}


def given(values: torch.Tensor) -> Given:
    return Given(tuple(values.shape), values.dtype, lambda: values)


@pytest.fixture
def file(tmp_path):
    write(tmp_path / "x.gguf", KEYS, {"m": given(VALUES), "v": given(VALUES[0])})
    return tmp_path / "x.gguf"


def test_keys_and_tensors_come_back(file):
    found = read(file)
    assert found.metadata == KEYS
    assert found.tensor("m").equal(VALUES) and found.tensor("v").equal(VALUES[0])


def test_a_part_of_a_tensor_is_read_alone(tmp_path):
    packed = torch.randn(3, 2, 256, generator=torch.Generator().manual_seed(0))
    for kind in ("F32", "Q8_0"):
        write(tmp_path / kind, KEYS, {"m": given(packed)}, kind)
        found = read(tmp_path / kind)
        assert found.tensor("m", 1).equal(found.tensor("m")[1])


@pytest.mark.parametrize("kind", container.QUANTISED)
def test_every_quantisation_is_read_as_the_package_does(kind, tmp_path):
    import gguf

    type = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[type]
    blocks = 256 // gguf.GGML_QUANT_SIZES[type][0]
    data = np.random.default_rng(0).integers(0, 60, (2, blocks * size), dtype=np.uint8)
    path, writer = tmp_path / "x.gguf", gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("m", data, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read(path)
    assert found.tensors["m"].kind == kind and found.tensors["m"].dtype == torch.float32
    assert np.array_equal(found.tensor("m").numpy(), gguf.dequantize(data, type))


def header(*, magic=b"GGUF", version=3, tensors=0, keys=b"", count=0, infos=b"") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, count) + keys + infos


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def info(name="m", shape=(4,), kind=0, start=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


U32 = struct.pack("<II", 4, 1)
HOSTILE = {
    "empty": (b"", "not a GGUF file"),
    "a pickle": (b"\x80\x04.....", "not a GGUF file"),
    "version 1": (header(version=1), "another version"),
    "big-endian": (header(version=3 << 24), "another version"),
    "cut off": (header()[:12], "ends within its header"),
    "endless keys": (header(count=1 << 60), "too many keys"),
    "endless tensors": (header(tensors=1 << 60), "too many tensors"),
    "a long key": (header(count=1, keys=struct.pack("<Q", 1 << 40)), "too many characters"),
    "a key of no text": (header(count=1, keys=struct.pack("<Q", 1) + b"\xff" + U32), "not UTF-8"),
    "a key twice": (header(count=2, keys=2 * (text("a") + U32)), "a key stands twice"),
    "an unknown type": (header(count=1, keys=text("a") + struct.pack("<I", 99)), "a value of an unknown type: 99"),
    "a list of lists": (header(count=1, keys=text("a") + struct.pack("<IIQ", 9, 9, 1)), "a value of an unknown type"),
    "a long list": (header(count=1, keys=text("a") + struct.pack("<IIQ", 9, 0, 1 << 50)), "too many values"),
    "a list beyond the file": (header(count=1, keys=text("a") + struct.pack("<IIQ", 9, 4, 9)), "within its header"),
    "no alignment": (header(count=1, keys=text("general.alignment") + struct.pack("<II", 4, 3)), "a power of two"),
    "a tensor outside": (header(tensors=1, infos=info(start=1 << 20)), "m: a tensor ends beyond the file"),
    "an overflow": (header(tensors=1, infos=info(start=(1 << 64) - 1)), "m: a tensor ends beyond the file"),
    "an unknown quantisation": (header(tensors=1, infos=info(kind=16)), "unknown quantisation; .*got IQ2_XXS"),
    "a number for a type": (header(tensors=1, infos=info(kind=999)), "unknown quantisation; .*got number 999"),
    "no whole blocks": (header(tensors=1, infos=info(shape=(33,), kind=8)), "rows of blocks of 32"),
    "no elements": (header(tensors=1, infos=info(shape=(0,))), "a tensor of no such shape"),
    "five dimensions": (header(tensors=1, infos=info(shape=(1,) * 5)), "so many dimensions"),
    "a tensor twice": (header(tensors=2, infos=2 * info()) + bytes(99), "a tensor stands twice"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_on_one_line(what, tmp_path):
    data, word = HOSTILE[what]
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(WeightsError, match=word) as refused:
        read(tmp_path / "x.gguf")
    assert "\n" not in str(refused.value) and "x.gguf" in str(refused.value)


def test_a_file_cut_anywhere_is_refused(file):
    whole = file.read_bytes()
    for end in range(0, len(whole) - 32, 37):
        file.write_bytes(whole[:end])
        with pytest.raises(WeightsError):
            read(file)


def test_values_of_another_type_are_named(file):
    with pytest.raises(WeightsError, match="a: a value of another type; expected str; got 3"):
        read(file).need("a", str)
    with pytest.raises(WeightsError, match="no: a key is missing; expected int or float"):
        read(file).need("no", (int, float))
    with pytest.raises(WeightsError, match="c: a value of another type"):
        read(file).need("c", int)


def test_without_the_package_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(Exception, match=r"install the extra: pip install 'moesaic\[gguf\]'"):
        read(file)
