"""Property: every hostile folder is refused by name, soon and in little memory; no mutation gets past the checks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import moesaic
from moesaic.errors import MoesaicError
from moesaic.tensors.safetensors_file import DTYPES, opened

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is measured as Linux tells it")


@pytest.fixture(scope="module")
def besieged(tmp_path_factory):
    """Has a forked child, in bounded memory, open the folder of a case, and tells how it ended."""
    path = os.pathsep.join([str(Path(moesaic.__file__).parents[1]), *sys.path])
    command = [sys.executable, hostile.__file__, str(tmp_path_factory.mktemp("hostile"))]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:

        def ask(name):
            print(json.dumps(name), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.mark.slow
def test_a_good_folder_opens_in_the_same_bounds(besieged):
    assert besieged(None)["status"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.CASES)
def test_it_is_refused_by_name_soon_and_in_little_memory(name, besieged):
    case, found = hostile.CASES[name], besieged(name)
    assert found["status"] in (4, 5), found
    assert found["file"] == case.file, found
    assert case.field in found["field"] and bool(case.field) == bool(found["field"]), found
    assert case.what in found["error"], found
    assert "\n" not in found["error"] and len(found["error"]) < 1500


# --- mutations --------------------------------------------------------------------------------------------------------

GOOD = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(2, 2, dtype=torch.bfloat16),
    "c": torch.tensor([1, -1]),
    "d": torch.zeros(0, 4),
    "e": torch.tensor([True, False]),
}
NUMBERS = st.integers(-2, 64) | st.sampled_from([1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64, 0.5, True, None, "4"])
VALUES = NUMBERS | st.lists(NUMBERS, max_size=4) | st.sampled_from([*DTYPES, "F4", {}, []])


@st.composite
def mutated(draw):
    """A good file with a few changes, most of them to what the header says."""
    raw = save(GOOD, metadata={"format": "pt"})
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(header)))
        what = draw(st.sampled_from(["set", "swap", "drop", "name", "data", "cut", "more"]))
        if what == "set" and isinstance(header[name], dict):
            header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "other"]))] = draw(VALUES)
        elif what == "swap":
            other = draw(st.sampled_from(sorted(header)))
            header[name], header[other] = header[other], header[name]
        elif what == "drop" and len(header) > 1:
            del header[name]
        elif what == "name":
            header[draw(st.text(max_size=3) | st.sampled_from(["x.y", "a" * 257, "../a"]))] = header.pop(name)
        elif what == "data" and data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        elif what == "cut" and data:
            del data[-draw(st.integers(1, len(data))) :]
        elif what == "more":
            data += draw(st.binary(min_size=1, max_size=9))
    text = json.dumps(header).encode()
    if draw(st.booleans()):
        text = text[: draw(st.integers(0, len(text)))] + draw(st.binary(max_size=3)) + text[draw(st.integers(0, 40)) :]
    length = draw(st.just(len(text)) | st.sampled_from([len(text) + 1, 0, 1 << 62]))
    return length.to_bytes(8, "little") + text + data


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=mutated())
def test_a_mutated_file_is_refused_or_read_as_the_library_reads_it(raw, tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(raw)
    try:
        with opened(path) as file:
            found = {name: (file.read(name), file.get(name)) for name in file.names}
    except MoesaicError as error:
        assert error.exit_code == 4 and error.path == path
        return
    expected = load(raw)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        for mine in found[name]:
            assert mine.dtype == tensor.dtype and mine.shape == tensor.shape and mine.equal(tensor)
