"""Is a conversation found again by its session or its messages, and is no other one taken for it?"""

from moesaic.serve.conversations import Conversations, Held, Talk
from moesaic.tokenizer import Message


def of(name: str) -> Held:
    return Held(name, {name: 1.0})


def said(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts))


def test_a_conversation_is_found_by_the_messages_up_to_its_latest_answer():
    held = Conversations()
    held.hold(Talk(None, said("sing")), ["la", "lo"], of("birds"))
    assert held.held(Talk(None, said("sing", "la", "more"))) == of("birds")
    assert held.held(Talk(None, said("sing", "lo", "more"))) == of("birds"), "each of several answers may be continued"
    assert held.held(Talk(None, said("sing", " la\n", "more"))) == of("birds"), "clients trim"
    assert held.held(Talk(None, (*said("sing", "la"), Message("tool", "3")))) == of("birds")


def test_another_conversation_is_not_taken_for_it():
    held = Conversations()
    held.hold(Talk(None, said("sing")), ["la"], of("birds"))
    for other in (said("sing"), said("sing", "li", "more"), said("song", "la", "more"), said("s", "ing la", "more")):
        assert held.held(Talk(None, other)) is None
    system = (Message("system", "brief"), *said("sing", "la", "more"))
    assert held.held(Talk(None, system)) is None
    assert held.held(Talk()) is None and held.held(Talk("sing")) is None


def test_a_session_is_its_name_whatever_is_said():
    held = Conversations()
    held.hold(Talk("one", said("sing")), ["la"], of("birds"))
    assert (
        held.held(Talk("one", said("other"))) == of("birds") and held.held(Talk("two", said("sing", "la", "x"))) is None
    )
    held.hold(Talk("one"), ["lo"], of("sums"))
    assert held.held(Talk("one")) == of("sums") and len(held) == 1


def test_the_latest_conversations_are_remembered_and_no_more():
    held = Conversations(most=3)
    for name in "abcd":
        held.hold(Talk(name), ["x"], of(name))
        held.held(Talk("b"))
    assert [held.held(Talk(name)) for name in "abcd"] == [None, of("b"), of("c"), of("d")] and len(held) == 3
    held.held(Talk("b"))
    held.hold(Talk("e"), ["x"], of("e"))
    assert held.held(Talk("b")) == of("b") and held.held(Talk("c")) is None, (
        "the one that was asked least recently goes"
    )


def test_a_text_without_a_session_is_no_conversation():
    held = Conversations()
    held.hold(Talk(), ["x"], of("birds"))
    assert len(held) == 0 and not Talk().after_a_tool


def test_a_turn_is_what_the_user_said_since_the_latest_answer():
    asked = (Message("system", "brief"), *said("sing", "la"))
    assert Talk(None, (*asked, *said("more"), Message("system", "soon"), *said("now"))).turn == (
        *said("more"),
        *said("now"),
    )
    assert Talk(None, asked[:2]).turn == said("sing")
    assert Talk(None, (*asked, Message("tool", "3"))).turn == Talk("one").turn == ()
