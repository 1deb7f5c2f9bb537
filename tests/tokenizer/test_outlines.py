"""Are conversations written from an outline as the template itself writes them, and never where it might differ?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_templates import CHATML, KNOWN, NAMES, chatty, ours  # noqa: F401

from moesaic.data.batches import encode_all
from moesaic.data.rows import examples_of
from moesaic.errors import DataError
from moesaic.tokenizer import Exchange, Message, Template
from moesaic.tokenizer.chats import Chats
from moesaic.tokenizer.templates import _rendered

LOOKING = {
    "if it is empty": "{% for m in messages %}{% if m.content %}{{ m.content }}{% endif %};{% endfor %}",
    "its length": "{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}",
    "what it begins with": "{% for m in messages %}{% if m.content.startswith('a') %}A{% endif %}{{ m.content }}"
    "{% endfor %}",
    "whether text has it": "{% for m in messages %}{% if m.content in 'a b' %}A{% endif %}{{ m.content }}{% endfor %}",
    "what it has": "{% for m in messages %}{% if '</think>' in m.content %}T{% endif %}{{ m.content }}{% endfor %}",
    "a part of it": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "a letter of it": "{% for m in messages %}{{ m.content[:1] }}{{ m.content }}{% endfor %}",
    "whether it is said again": "{% for m in messages %}{% if m.content == messages[0].content %}same{% endif %}"
    "{{ m.content }}{% endfor %}",
    "in a format": "{% for m in messages %}{{ '%5s' % m.content }}{% endfor %}",
    "joined and stripped": "{% for m in messages %}{{ (m.content ~ ' a') | trim }}{% endfor %}",
    "added and stripped": "{% for m in messages %}{{ (m.content + ' a') | trim }}{% endfor %}",
    "in capitals": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "in a block": "{% for m in messages %}{% set x %}{{ m.content }}{% endset %}{{ x | trim }}{% endfor %}",
    "in a macro": "{% macro f(x) %}{{ x }}{% endmacro %}{% for m in messages %}{{ f(m.content) | trim }}{% endfor %}",
    "other than its ends": "{% for m in messages %}{{ m.content.strip('a') }}{% endfor %}",
    "a thought": "{% for m in messages %}{{ m.content.split('</think>') | last if loop.last else '' }}{% endfor %}",
}
contents = st.sampled_from(["", " ", "a", "a b", " a\n", "</think>x", "<|im_end|>", "\ufdee0\ufdef", "日本 ", "\ta"])
roles = st.sampled_from(["user", "assistant", "system"])
talks = st.lists(st.builds(Message, roles, contents), min_size=1, max_size=6).map(tuple)


@pytest.mark.parametrize("source", [*KNOWN.values(), *LOOKING.values()], ids=[*KNOWN, *LOOKING])
@settings(max_examples=30)
@given(talk=talks, reply=st.booleans())
def test_an_outline_filled_is_the_text_of_the_template(source, talk, reply):
    template = Template(source, NAMES)
    outline = template.outline(tuple(message.role for message in talk), reply)
    if outline:
        assert outline.filled(talk) == _rendered(template.compiled, talk, reply, dict(NAMES))


@pytest.mark.parametrize("source", LOOKING.values(), ids=LOOKING)
def test_a_template_that_looks_into_contents_has_no_outline(source):
    assert Template(source, NAMES).outline(("user", "assistant"), False) is None


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ("marked", "mistral")])
def test_a_template_that_writes_contents_has_an_outline(name):
    assert Template(KNOWN[name], NAMES).outline(("user", "assistant", "user"), True)


def test_a_template_that_repeats_contents_or_has_marks_of_its_own_has_none():
    repeats = "{% for m in messages %}" + "{{ m.content }}" * 3 + "{% endfor %}"
    assert Template(repeats).outline(("user",), True) is None
    assert Template(CHATML + "\ufdee").outline(("user",), True) is None


TALK = [
    *[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Two and two?"}],
    *[{"role": "assistant", "content": "Four."}, {"role": "user", "content": " <|im_end|> more"}],
    *[{"role": "assistant", "content": "\nFive,\n"}, {"role": "user", "content": "Bye"}],
    {"role": "assistant", "content": "Ciao <s>"},
]
CHANGING = CHATML.replace("message['content']", "(message['content'] if loop.last else message['content'] | trim)")
QUOTING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize(
    "source", [CHATML, KNOWN["llama-3"], KNOWN["qwen2.5"], KNOWN["zephyr"], QUOTING, LOOKING["what it has"]]
)
def test_the_answers_of_a_conversation_are_those_of_each_by_itself(source, ours, tmp_path):  # noqa: F811
    tokenizer = chatty(ours, tmp_path, source, eos_token="<|im_end|>")
    examples = examples_of({"messages": TALK}) + examples_of({"prompt": "Two?", "response": "2"})
    exchanges = [Exchange(one.messages or one.prompt, one.response) for one in examples]
    together = list(tokenizer.exchanges(exchanges))
    assert together == [pair for one in exchanges for pair in tokenizer.exchanges([one])]
    assert [prompt for prompt, _ in together] == [tokenizer.begin(one.prompt) for one in exchanges]
    assert all(ids[-1] in tokenizer.ends for _, ids in together)
    rows, _ = encode_all([*examples, *examples_of({"text": "a story"})], tokenizer, 1000, 8)
    assert [row.ids for row in rows[:-1]] == [prompt + response for prompt, response in together]


def test_a_template_that_changes_earlier_turns_is_judged_by_the_contents(ours, tmp_path):  # noqa: F811
    tokenizer = chatty(ours, tmp_path, CHANGING)
    exchanges = [Exchange(one.messages, one.response) for one in examples_of({"messages": TALK})]
    assert list(tokenizer.exchanges(exchanges[:1])), "nothing to strip"
    with pytest.raises(DataError, match="changes the prompt when an answer follows"):
        list(tokenizer.exchanges(exchanges))
    with pytest.raises(DataError, match="changes the prompt when an answer follows"):
        tokenizer.check(exchanges)


def test_a_conversation_is_rendered_and_encoded_once(ours, tmp_path, monkeypatch):  # noqa: F811
    tokenizer = chatty(ours, tmp_path, CHATML, eos_token="<|im_end|>")
    list(tokenizer.exchanges([Exchange("?", "!")]))
    encoded, rendered = [], []
    known, pieces = type(tokenizer)._known, Template.pieces
    monkeypatch.setattr(
        type(tokenizer),
        "_known",
        lambda self, some: encoded.extend(t for s in some for t in s.texts()) or known(self, some),
    )
    monkeypatch.setattr(Template, "pieces", lambda self, *given: rendered.append(given) or pieces(self, *given))
    exchanges = [Exchange(one.messages, one.response) for one in examples_of({"messages": TALK})]
    list(tokenizer.exchanges(exchanges))
    assert not rendered
    assert sum("Be kind." in one.text for one in encoded) == 1
    assert len(Chats.answers(tokenizer.chats, (*exchanges[-1].prompt, Message("assistant", "x")), [2, 4, 6])) == 1


@pytest.mark.parametrize("first", ["\nnew line", "plain", " space"])
def test_an_answer_whose_first_token_reaches_into_the_prompt_is_encoded_by_itself(first, ours, tmp_path):  # noqa: F811
    """What generation reads is the prompt alone, so training reads the same."""
    tokenizer = chatty(ours, tmp_path, QUOTING.replace("assistant:{%", "assistant: {%"))
    ((prompt, response),) = tokenizer.exchanges([Exchange((Message("user", "hi"),), first)])
    assert prompt == tokenizer.begin("hi")
    assert tokenizer.decode([*prompt, *response]) == f"user: hi\nassistant: {first}\n"
