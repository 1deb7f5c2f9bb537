"""Do tensors come out of a file as they are, checked, and is a file that shrinks an error and never a signal?"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import moesaic
from moesaic.artefacts.base import load_base
from moesaic.errors import MemoryLimitError, WeightsError
from moesaic.files import MANIFEST
from moesaic.tensors import safetensors_file as opening
from moesaic.tensors.safetensors_file import DTYPES, opened

FILE = "model.safetensors"


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE


def written(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> bytes:
    path.write_bytes(save(tensors, metadata))
    return path.read_bytes()


def fetch(how: str, path: Path, name: str) -> torch.Tensor:
    with opened(path) as file:
        return getattr(file, how)(name)


EACH = pytest.mark.parametrize("how", ["get", "read"])


@EACH
@pytest.mark.parametrize("kind", DTYPES)
def test_every_type_comes_back_as_the_library_reads_it(kind, how, path):
    numbers = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(DTYPES[kind])
    raw = written(path, {"a.b": numbers, "none": numbers[:0].clone(), "one": numbers[0, 1].clone()}, format="pt")
    with opened(path) as file:
        found = {name: getattr(file, how)(name) for name in file.names}
        assert file.dtypes == dict.fromkeys(found, DTYPES[kind]) and file.metadata == {"format": "pt"}
        assert file.shapes == {"a.b": (2, 3), "none": (0, 3), "one": ()}
    for name, tensor in load(raw).items():
        mine = found[name]
        assert mine.dtype == tensor.dtype and mine.shape == tensor.shape, name
        assert mine.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


def test_a_view_lives_on_when_the_file_is_closed_and_replaced_and_never_writes_to_it(path):
    raw = written(path, {"a": torch.arange(1000.0)})
    view = fetch("get", path, "a")
    view[0] = 5
    assert path.read_bytes() == raw
    path.unlink()
    assert view[1:].equal(torch.arange(1.0, 1000))


def test_a_tensor_between_two_multiples_of_its_width_is_read(path):
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\1\2\3" + torch.tensor([1.5, -2]).numpy().tobytes())
    found = fetch("get", path, "b")
    assert found.tolist() == [1.5, -2] and found.data_ptr() % 4 == 0


@EACH
@pytest.mark.parametrize("place", [0, 3, 262144, 600000])  # of chunks of 262,144: the first, the second, the last
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_how_many_values_are_not_finite_is_told_wherever_they_stand(value, place, how, path):
    tensor = torch.ones(600001)
    tensor[place] = tensor[600000] = value
    written(path, {"good": torch.ones(2), "bad": tensor})
    count = len({place, 600000})
    fetch(how, path, "good")
    with pytest.raises(
        WeightsError, match=rf"{FILE}: bad: the tensor holds NaN or infinity: {count} of 600,001 values"
    ):
        fetch(how, path, "bad")


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2])
def test_values_that_are_not_finite_are_found_in_every_type(dtype, how, path):
    written(path, {"bad": torch.tensor([0.0, float("nan"), 1.0]).to(dtype)})
    with pytest.raises(WeightsError, match="1 of 3 values"):
        fetch(how, path, "bad")


def test_a_truth_value_of_two_is_refused(path):
    raw = written(path, {"a": torch.tensor([True, False])})
    path.write_bytes(raw[:-2] + b"\1\2")
    with pytest.raises(WeightsError, match="a: not boolean values; expected bytes of 0 and 1; got 2"):
        fetch("read", path, "a")


def test_what_is_odd_but_may_be_meant_is_a_doubt_and_told_once(path):
    tensors = {"zero": torch.zeros(2, 2), "bias": torch.zeros(2), "huge": torch.tensor([1.0, -3e38])}
    written(path, {**tensors, "ids": torch.zeros(2, 2, dtype=torch.int64), "plain": torch.tensor([[0.0, 1e3]])})
    with opened(path) as file:
        for name in (*file.names, *file.names):
            file.get(name)
            file.read(name)
        assert sorted(file.doubts) == [f"{path}: huge: holds values up to 3e+38", f"{path}: zero: all values are 0"]


def test_a_tensor_that_is_not_there_is_missing(path):
    written(path, {"a": torch.ones(1)})
    with pytest.raises(WeightsError, match=f"{FILE}: b: a tensor is missing"):
        fetch("get", path, "b")


def test_no_memory_is_said_as_such(path, monkeypatch):
    written(path, {"a": torch.ones(1)})

    def full(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with opened(path) as file:
        monkeypatch.setattr(torch, "empty", full)
        with pytest.raises(MemoryLimitError, match=rf"no memory for a of {FILE}"):
            file.read("a")


# --- files that change ------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("gone", [1, 300000, 2400000])
def test_a_file_that_was_cut_off_after_it_was_opened_is_an_error(gone, how, path):
    raw = written(path, {"a": torch.ones(300000), "b": torch.ones(300000)})
    with opened(path) as file:
        os.truncate(path, len(raw) - gone)
        with pytest.raises(
            WeightsError, match=rf"{FILE}: b: the file was truncated .*; expected [\d,]+ bytes; got [\d,]+"
        ):
            getattr(file, how)("b")


def test_a_file_that_was_cut_off_between_two_looks_at_a_tensor_is_an_error(path):
    raw = written(path, {"a": torch.ones(3000)})
    with opened(path) as file:
        file.get("a")
        os.truncate(path, len(raw) - 1)
        with pytest.raises(WeightsError, match=f"{FILE}: a: the file was truncated"):
            file.get("a")


CUTTING = """
import os, sys
from pathlib import Path
from moesaic.errors import WeightsError
from moesaic.tensors import safetensors_file as opening
from moesaic.artefacts.base import load_base
real, path, calls = opening._extremes, Path(sys.argv[1]), 0
def cutting(part):
    global calls
    calls += 1
    if calls == 2:
        os.truncate(path, 1000)
    return real(part)
opening._extremes = cutting
try:
    with opening.opened(path) as file:
        getattr(file, sys.argv[2])("a")
except WeightsError as error:
    print(error)
"""


def told(script: str, *words: str) -> str:
    """What a process of its own says, which a signal would end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(moesaic.__file__).parents[1])}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.slow
@EACH
def test_a_file_that_is_cut_off_in_the_midst_of_a_tensor_ends_no_process(how, path):
    """Zeros are looked at closely, which is done in a copy."""
    written(path, {"a": torch.zeros(2_000_000)})
    assert "a: the file was truncated while it was read" in told(CUTTING, str(path), how)


def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors that are read by calls of the system, once for every piece, told as they are."""
    names, fill = [], opening.Opened._fill

    def counted(self, name, part, at):
        names.append(name)
        fill(self, name, part, at)

    monkeypatch.setattr(opening.Opened, "_fill", counted)
    return names


def test_what_is_plain_is_looked_at_where_it_lies_and_nothing_is_copied(path, monkeypatch):
    written(path, {"a": torch.ones(600_000), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(3)})
    names = copied(monkeypatch)
    with opened(path) as file:
        for name in file.names:
            file.get(name)
    assert set(names) == {"header", "c"}


def test_the_library_judges_the_file_that_was_opened_whatever_takes_its_name(path, tmp_path, monkeypatch):
    written(path, {"a": torch.ones(3)})
    (tmp_path / "other").write_bytes(b"no safetensors file")
    real = opening.open_regular

    def replacing(at):
        file = real(at)
        os.replace(tmp_path / "other", path)
        return file

    monkeypatch.setattr(opening, "open_regular", replacing)
    assert fetch("get", path, "a").tolist() == [1, 1, 1]


@settings(max_examples=300)
@given(kind=st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E5M2"]), raw=st.binary(min_size=8, max_size=64))
def test_what_is_called_plain_is_finite_not_huge_and_not_all_zero(kind, raw):
    values = torch.frombuffer(bytearray(raw[: len(raw) // 8 * 8]), dtype=DTYPES[kind])
    if opening._plain(values):
        assert values.isfinite().all() and 0 < values.double().abs().max() <= opening.HUGE


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_what_weights_look_like_is_plain_whatever_their_signs(kind):
    normal = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(DTYPES[kind])
    for values in (normal, normal.abs(), -normal.abs(), torch.tensor([0.0, -1.0], dtype=DTYPES[kind])):
        assert opening._plain(values)
    for odd in (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3e6, -3e6):
        rest = 0.0 if odd == 0 else 1.0
        assert not opening._plain(torch.tensor([rest, odd, -rest], dtype=DTYPES[kind])), odd


@EACH
def test_what_was_opened_is_what_is_read_whatever_takes_its_name(how, path, tmp_path):
    written(path, {"a": torch.ones(3)})
    with opened(path) as file:
        written(tmp_path / "other", {"a": torch.zeros(3)})
        os.replace(tmp_path / "other", path)
        assert getattr(file, how)("a").tolist() == [1, 1, 1]


def test_the_memory_that_checking_takes_does_not_grow_with_the_tensor(path):
    """A view is checked where it lies, or through a scratch of one chunk; nothing of the tensor's size is made."""
    written(path, {"a": torch.zeros(4_000_000)})  # looked at closely
    largest = 0
    real = torch.empty

    def measured(*args, **kwargs):
        nonlocal largest
        made = real(*args, **kwargs)
        largest = max(largest, made.numel() * made.element_size())
        return made

    with opened(path) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", measured)
        file.get("a")
    assert 0 < largest <= opening.CHUNK


def test_an_error_in_a_file_leaves_it_closed(path):
    path.write_bytes(b"x" * 20)
    for _ in range(3):
        with pytest.raises(WeightsError, match="not a readable safetensors file"):
            opened(path)  # a file left open would be a ResourceWarning, which is an error in these tests


def test_a_pointer_of_git_lfs_says_what_to_do(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(WeightsError, match="run `git lfs pull`"):
        opened(path)


# --- whole folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", [True, False])
def test_a_base_in_the_cache_of_the_hub_is_read_through_its_links(manifest, parts, tmp_path):
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted((parts.folder / "base").iterdir())):
        if manifest or file.name != MANIFEST:
            shutil.copy(file, repository / "blobs" / str(number))
            (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load_base(snapshot).fingerprint == parts.fingerprint


def test_a_base_with_a_matrix_of_zeros_is_read_with_a_warning(parts, tmp_path):
    folder = shutil.copytree(parts.folder / "base", tmp_path / "base")
    (folder / MANIFEST).unlink()
    with opened(folder / FILE) as file:
        tensors = {name: file.read(name) for name in file.names}
    name = "model.layers.1.mlp.up_proj.weight"
    (folder / FILE).write_bytes(save({**tensors, name: torch.zeros_like(tensors[name])}))
    with pytest.warns(UserWarning, match=rf"{FILE}: {name}: all values are 0$"):
        load_base(folder)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "it is cut off; expected 8 bytes or more; got 0"),
        (b"\1\0\0", "it is cut off; expected 8 bytes or more; got 3"),
        ((100).to_bytes(8, "little") + b"{}", "its header is too long; expected at most 2 bytes; got 100"),
        ((9 << 20).to_bytes(8, "little") + b" " * (9 << 20), "expected at most 8,388,608 bytes; got 9,437,184"),
    ],
)
def test_a_file_that_is_too_short_for_its_header_is_told_so(raw, said, path):
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match=f"not a readable safetensors file: .*{said}"):
        opened(path)
