import errno
import json
import os
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import StorageError, WeightsError
from moesaic.files import digest, read_json, read_json_list, read_sealed, write_json, write_sealed
from moesaic.files.plain import decoded, encoded

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, max_size=3))
def test_what_is_written_is_read(value):
    assert decoded(encoded(value)) == decoded(encoded(value, indent=2)) == value
    assert digest(decoded(encoded(value))) == digest(value)
    assert encoded(value).count(b"\n") == 1


def test_the_text_is_for_people(tmp_path):
    write_json(tmp_path / "value.json", {"zeta": [1], "alpha": "é", "torn": "\ud800"})
    text = (tmp_path / "value.json").read_bytes().decode()
    assert text == '{\n  "zeta": [\n    1\n  ],\n  "alpha": "é",\n  "torn": "\\ud800"\n}\n'
    assert read_json(tmp_path / "value.json")["torn"] == "\ud800"


def test_equal_content_has_an_equal_digest():
    assert digest({"b": 1, "a": [1, 2]}) == digest({"a": (1, 2), "b": 1})
    assert digest({2: "", 10: ""}) == digest({"10": "", "2": ""})
    assert len({digest(value) for value in (1, "1", 1.5, [1], {"a": 1}, None, True)}) == 7
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"loss": float("nan")})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "duplicate key 'a'"),
        (b'{"a": {"x": 1, "x": 1}}', "duplicate key 'x'"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": -Infinity}', "-Infinity is not"),
        (b'{"a": 1e999}', "1e999 is not"),
        (b"[1]", "expected an object, got list"),
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": "\xff"}', "decode"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"' + b"k" * 5000 + b'": 0, "' + b"k" * 5000 + b'": 0}', "kkk…"),
    ],
)
def test_doubtful_json_is_refused_by_name(tmp_path, data, message):
    path = tmp_path / "value.json"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        read_json(path)
    assert caught.value.path == path and len(str(caught.value)) < 400


def test_size_and_kind_of_file(tmp_path):
    path = tmp_path / "value.json"
    path.write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(WeightsError, match="too large; expected at most 100 bytes"):
        read_json(path, limit=100)
    os.mkfifo(tmp_path / "pipe")
    found = {tmp_path / "none.json": "no such file", tmp_path: "got a folder", tmp_path / "pipe": "got a pipe"}
    for absent, message in found.items():
        with pytest.raises(WeightsError, match=message):
            read_json(absent)


def test_not_a_number_is_not_written(tmp_path):
    write_json(tmp_path / "value.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert read_json(tmp_path / "value.json") == {"loss": 1.0}


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, {"text": "old"})

    def full(fd: int, data: bytes) -> int:
        if len(data) > 5:
            return os.pwrite(fd, data[:5], 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        StorageError, match=r"No space left.*expected more than 5 bytes; got [0-9,]+ bytes free; free some"
    ):
        write_json(path, {"t": ""})
    assert read_json(path) == {"text": "old"} and os.listdir(tmp_path) == ["value.json"]


@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EIO"])
def test_at_every_call_a_fault_leaves_the_old_or_the_new_file(ram, crash, fault):
    outcomes = []
    for call in count(1):
        write_json(ram / "value.json", {"text": "old"})
        status = crash(do="json", root=ram, text="new", call=call, fault=fault)
        if status is None:
            break
        outcomes.append((status, read_json(ram / "value.json")["text"]))
        write_json(ram / "value.json", {"text": "next"})
        assert os.listdir(ram) == ["value.json"]
    bad = -9 if fault == "kill" else 6
    before, after = [(bad, "old")] * 3, [(bad, "new")]  # write, sync, replace | sync the folder, tidy up
    assert outcomes == before + after + [(-9 if fault == "kill" else 0, "new")]


def test_a_list_of_objects_is_read_as_strictly_as_an_object(tmp_path):
    path = tmp_path / "modules.json"
    path.write_text('[{"type": "a"}, {"type": "b"}]')
    assert read_json_list(path) == [{"type": "a"}, {"type": "b"}]
    for bad, why in {
        '{"type": "a"}': "expected a list of objects",
        '[{"type": "a"}, 3]': "expected a list of objects",
        '[{"type": "a", "type": "b"}]': "duplicate key 'type'",
        '[{"type": NaN}]': "not a finite number",
        "[" * 100_000: "nested too deeply",
    }.items():
        path.write_text(bad)
        with pytest.raises(WeightsError, match=rf"modules\.json: not usable as JSON: .*{why}"):
            read_json_list(path)
    with pytest.raises(WeightsError, match="the file is too large"):
        read_json_list(path, limit=9)


def test_a_sealed_file_comes_back_or_says_that_it_was_changed(tmp_path):
    path, value = tmp_path / "evaluation.json", {"nats": 0.1 + 0.2, "by": {"b": [1, None], "a": "ü\u2028"}}
    write_sealed(path, value)
    assert read_sealed(path) == value
    good = path.read_bytes()
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1 << place % 7
        path.write_bytes(changed)
        if json_or_none(bytes(changed)) != json.loads(good):  # white space is nobody's figure
            with pytest.raises(WeightsError, match=r"evaluation\.json"):
                read_sealed(path)
    path.write_text('{"nats": 1}')
    with pytest.raises(WeightsError, match="digest: the file was changed after it was written"):
        read_sealed(path)


def json_or_none(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None
