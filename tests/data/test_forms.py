"""Forms of prompts: each keeps the words, depends on its key alone, and judges with wordings that training lacks."""

import pytest

from moesaic.data.forms import FORMS, OTHERS, SYSTEMS, SYSTEMS_JUDGED, Draw, drawn, remarks, words
from moesaic.data.rows import Example
from moesaic.tokenizer import Message

TEXT = "Tom has 3 apples and buys 4 more. How many apples does he have now?"
TALK = (Message("system", "Be kind."), Message("user", "A table, please."), Message("assistant", "For how many?"))
TALK = (*TALK, Message("user", "For four of us."))


@pytest.mark.parametrize("prompt", [TEXT, TALK])
@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_a_function_of_prompt_and_key(name: str, judged: bool, prompt: str):
    once, again = (FORMS[name](prompt, Draw("key", judged)) for _ in range(2))
    assert once == again and words(once, Draw("")).strip()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("as_is", TEXT),
        ("text", TEXT),
        ("message", (Message("user", TEXT),)),
        ("system", (Message("system", Draw("key").system), Message("user", TEXT))),
        ("middle", "apples and buys 4 more. How many apples does"),
    ],
)
def test_what_each_form_makes_of_a_text(name: str, expected: object):
    assert FORMS[name](TEXT, Draw("key")) == expected


def test_a_conversation_keeps_its_turns_and_gets_one_system_prompt():
    written = FORMS["system"](TALK, Draw("key"))
    assert [message.role for message in written] == ["system", "user", "assistant", "user"]
    assert written[1:] == TALK[1:]
    turned = FORMS["turns"](TALK, Draw("key"))
    assert turned[0] == TALK[0] and turned[-3:] == TALK[1:] and turned[1].role == "user"
    assert FORMS["text"](TALK, Draw("key")) == "Be kind.\nA table, please.\nFor how many?\nFor four of us."


@pytest.mark.parametrize("name", ["case", "spacing"])
def test_case_and_spacing_keep_the_letters(name: str):
    for key in "abcdefghij":
        written = FORMS[name](TEXT, Draw(key))
        assert "".join(written.split()).lower() == "".join(TEXT.split()).lower()


def test_only_the_text_itself_goes_round_the_chat_template():
    assert [name for name, form in FORMS.items() if form.raw] == ["text"]


def test_what_judges_is_not_what_taught():
    (judged,) = SYSTEMS_JUDGED
    keys = [str(number) for number in range(400)]
    taught = {Draw(key).system for key in keys}
    assert len(taught) > 100 and all(any(piece in one for one in taught) for some in SYSTEMS for piece in some)
    assert {Draw(key, judged=True).system for key in keys} == set(judged) and not taught & set(judged)
    assert not {*remarks("train")[0]} & {*remarks("test")[0]} and not {*remarks("train")[1]} & {*remarks("test")[1]}


def test_earlier_turns_are_one_or_two_exchanges_that_end_with_the_assistant():
    drawn_ones = [Draw(str(number)).turns for number in range(200)]
    assert {len(turns) for turns in drawn_ones} == {2, 4} and len({*drawn_ones}) > 190
    assert all([one.role for one in turns] == ["user", "assistant"] * (len(turns) // 2) for turns in drawn_ones)


def test_all_other_forms_are_drawn_about_equally_often():
    for others in OTHERS:
        names = [drawn(Example("p", "r", str(number)), others) for number in range(100 * len(others))]
        assert set(names) == {*others} and all(60 < names.count(name) < 140 for name in others)
    assert {"as_is", *(name for others in OTHERS for name in others)} == {*FORMS}
