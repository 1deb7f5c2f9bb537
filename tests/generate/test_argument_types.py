"""Property: what callers of Python give is answered in each shape that it has, or refused by the argument's name.

The package runs in a process of its own, as in use: here, annotations are checked before it can say a word.
"""

import json
import subprocess
import sys

import pytest

TALK = [
    {"role": "user", "content": "sing of the owl"},
    {"role": "assistant", "content": "hoo"},
    {"role": "user", "content": "and again"},
]

ANSWERED = {  # a prompt -> the prompt that is answered alike
    "{'messages': TALK}": "TALK",
    "{'prompt': TALK}": "TALK",
    "tuple(TALK)": "TALK",
    "iter(TALK)": "TALK",
    "[Message(**one) for one in TALK]": "TALK",
    "[Message(**TALK[0]), *TALK[1:]]": "TALK",
    "TALK[0]": "TALK[:1]",
    "Message(**TALK[0])": "TALK[:1]",
    "{'prompt': 'once'}": "'once'",
    "iter(('once', 'the owl'))": "['once', 'the owl']",
    "({'messages': TALK}, 'once')": "[TALK, 'once']",
}
SETTINGS = {  # keywords -> keywords that mean the same
    "stop='a'": "stop=('a',)",
    "stop=['a', 'b']": "stop=('a', 'b')",
    "max_new_tokens=numpy.int64(3)": "max_new_tokens=3",
    "top_k=numpy.int64(3), seed=numpy.int32(1), temperature=1": "top_k=3, seed=1, temperature=1.0",
}
REFUSED = {
    "prompt": ["b'sing'", "3", "None", "2.5", "[b'sing']", "[None]", "[3]", "{'prompt': 3}"],
    "messages": ["{'messages': 'sing'}", "{'messages': {}}"],
    "max_new_tokens": ["3.0", "'3'", "True", "[3]"],
    "temperature": ["'0.5'", "True", "b'1'", "[0.5]"],
    "top_p": ["'0.9'", "[0.9]"],
    "top_k": ["2.0", "'2'", "True"],
    "seed": ["1.0", "'1'", "True"],
    "sampling": ["0.5", "{'temperature': 1.0}", "'greedy'"],
    "stop": ["3", "[3]", "{'a': 1}", "b'a'", "('a', None)"],
    "expert": ["3", "['base']", "b'base'"],
}
UNOPENED = {
    "place": ["3", "None", "b'mix'", "['mix']"],
    "base": ["3", "b'mix'"],
    "trace": ["3", "['a']"],
    "ram": ["2e9", "True", "['2GB']", "b'2GB'"],
    "vram": ["2e9", "True", "['2GB']", "b'2GB'"],
    "device": ["3", "None", "b'cpu'"],
    "dtype": ["3", "None", "['float32']"],
}
WRONG = [(field, value) for field, values in REFUSED.items() for value in values]
WRONG_AT_ONCE = [(field, value) for field, values in UNOPENED.items() for value in values]

SCRIPT = """
import json, sys
import numpy
import moesaic
from moesaic.tokenizer import Message

TALK, calls = json.load(sys.stdin)
model = moesaic.load("shipped:tiny")

def said(call):
    try:
        return repr(eval(call))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({call: said(call) for call in calls}))
"""


def generating(prompt: str, settings: str = "") -> str:
    return f"model.generate({prompt}, **dict(dict(max_new_tokens=3), {settings}))"


def wrong(field: str, value: str) -> str:
    return generating(value) if field in ("prompt", "messages") else generating("'once'", f"{field}={value}")


def opening(field: str, value: str) -> str:
    return f"moesaic.load(**dict(dict(place='nowhere'), {field}={value}))"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each call, and what came of it."""
    calls = [generating(prompt) for pair in ANSWERED.items() for prompt in pair]
    calls += [generating("'once'", settings) for pair in SETTINGS.items() for settings in pair]
    calls += [wrong(*one) for one in WRONG] + [opening(*one) for one in WRONG_AT_ONCE]
    calls += [f"model.route({value})" for value in REFUSED["prompt"]]
    command = [sys.executable, "-c", SCRIPT]
    folder = tmp_path_factory.mktemp("called")
    done = subprocess.run(
        command, input=json.dumps([TALK, calls]), cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("given", ANSWERED)
def test_a_prompt_is_answered_in_each_shape_that_callers_have(said, given):
    assert said[generating(given)] == said[generating(ANSWERED[given])]
    assert "Generation(" in said[generating(given)]


@pytest.mark.parametrize("given", SETTINGS)
def test_settings_that_mean_the_same_give_the_same(said, given):
    assert said[generating("'once'", given)] == said[generating("'once'", SETTINGS[given])]
    assert "Generation(" in said[generating("'once'", given)]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_an_argument_of_another_type_is_refused_by_its_name(said, field, value):
    error, named, told = said[wrong(field, value)].split(": ", 2)
    assert error in ("DataError", "RecipeError") and named == field
    assert told.startswith("wrong type; expected ") and "; got " in told


def test_bytes_are_named_as_they_are_and_not_read_as_numbers(said):
    assert said[wrong("prompt", "b'sing'")].endswith("got bytes b'sing'")


@pytest.mark.parametrize("value", REFUSED["prompt"])
def test_what_is_no_prompt_is_not_routed(said, value):
    assert said[f"model.route({value})"] == said[generating(value)]


@pytest.mark.parametrize(("field", "value"), WRONG_AT_ONCE)
def test_a_place_or_size_of_another_type_is_refused_before_anything_is_read(said, field, value):
    error, named, told = said[opening(field, value)].split(": ", 2)
    assert (error, named) == ("RecipeError", field)
    assert told.startswith("wrong type; expected a") and f"; got {type(eval(value)).__name__}" in told
