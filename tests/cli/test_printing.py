"""Does what models and files say stay text on a terminal, and is it the same values as JSON?"""

import json

import pytest

from moesaic.cli.printing import harmless, json_text

OBEYED = [
    "\x00",
    "\x07",
    "\x1b[31m",
    "\r",
    "\x7f",
    "\x85",
    "\x9b31m",
    "\u061c",
    "\u200e",
    "\u200f",
    "\u2028",
    "\u202a",
    "\u202e",
    "\u2066",
    "\u2069",
]


@pytest.mark.parametrize("some", OBEYED, ids=ascii)
def test_what_a_terminal_obeys_is_spelled_out(some):
    shown = harmless(f"a{some}b")
    assert some[0] not in shown and shown == f"a{ascii(some[0])[1:-1]}{some[1:]}b"
    value = {"text": [f"a{some}b", "é"], some: 1}
    written = json_text(value, indent=2)
    assert some[0] not in written and json.loads(written) == value and '"é"' in written


def test_all_other_text_is_printed_as_it_is():
    text = "naïve 日本語\u3000“a”\u00a0é\n\t\u05e9\u05dc مرحبا 👩\u200d👧 \ufffd"
    assert harmless(text) == text and text[:5] in json_text(text)
