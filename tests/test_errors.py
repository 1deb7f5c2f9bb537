import pickle
from pathlib import Path

import pytest

from moesaic.errors import CompatibilityError, GatesError, MoesaicError, RecipeError


@pytest.mark.parametrize("kind", [MoesaicError, RecipeError, CompatibilityError, GatesError])
def test_an_error_arrives_whole_from_another_process(kind):
    sent = kind("what", path=Path("file"), line=3, field="a.b", expected=[1, 2], got="three", hint="do this")
    arrived = pickle.loads(pickle.dumps(sent))
    assert type(arrived) is kind and str(arrived) == str(sent)
    assert vars(arrived) == vars(sent) and arrived.exit_code == sent.exit_code


def test_what_is_added_on_the_way_arrives_too():
    error = RecipeError("what")
    error.path, error.line = "file", 7
    assert str(pickle.loads(pickle.dumps(error))) == "file:7: what"


def test_only_what_an_error_does_not_say_is_filled_in():
    error = RecipeError("what", field="a.b").at(path="file", line=7, field="c", hint="do this")
    assert str(error) == "file:7: a.b: what; do this"
    assert error.at(path="other", line=9, hint="do that") is error and str(error) == "file:7: a.b: what; do this"


def test_a_line_of_another_path_is_not_filled_in():
    assert str(RecipeError("what", path="file").at(path="other", line=9)) == "file: what"
    assert str(RecipeError("what", path="file").at(path="file", line=9)) == "file:9: what"


def test_what_a_terminal_would_obey_or_cannot_show_is_spelled_out():
    error = MoesaicError("what\x1b[31m", path="a\u202eb", field="é\ud800 \t\n", got="\U0001f600\u2028\0", hint="\x9b")
    assert str(error) == r"a\u202eb: é\ud800: what\x1b[31m: 😀 \x00; \x9b"


def test_an_error_is_no_longer_than_a_person_reads():
    long = "x" * 10_000
    assert len(str(MoesaicError(long, field=long, got=long))) < 1000
