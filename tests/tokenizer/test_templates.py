"""Are conversations written as the base has learned to read them, is what is said text, and are they bounded?"""

import json
from datetime import datetime
from pathlib import Path

import pytest
import tokenizers
from encoding import encode

from moesaic.data.rows import examples_of
from moesaic.errors import DataError, WeightsError
from moesaic.tokenizer import Message, Special, Template, Tokenizer, templates
from moesaic.tokenizer.conversation import plain
from moesaic.tokenizer.spellings import Spellings

ANSWER = {"role": "assistant", "content": "7"}

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The formats of well-known models, written out from what they look like.
KNOWN = {
    "chatml": CHATML,
    "qwen2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}"),
    "qwen2.5": """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
           or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama-3.2": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "gemma-3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
""",
    "mistral": "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles!') }}"
    "{% endif %}{% endfor %}",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "indented": """{% for message in messages %}
    {% if message.role != 'system' %}
        {# a remark #}
{{ message.content }}
    {% endif %}
{% endfor %}""",
    "marked": "{%- for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m | tojson }}{% endif %}{% if loop.index > 50 %}{% break %}{% endif %}{% endfor %}",
}
NAMES = (("bos_token", "<s>"), ("eos_token", "</s>"))
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]


def said(*pairs: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in pairs)


TALKS = [
    said(("user", "What is 3 + 4?")),
    said(("user", " Hi <b> & 'all'\n"), ("assistant", "Héllo 🙂 "), ("user", "日本語?")),
    said(("system", "Be kind.\n"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")),
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.train(["user assistant system what is the sum of two and two"], 300)


def chatty(tokenizer: Tokenizer, folder: Path, template: str, **facts) -> Tokenizer:
    """The same tokenizer with the tokens that chat templates use, and one of these."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder)
    ids = {token: tokenizer.vocab_size + at for at, token in enumerate(SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    config = {**dict(NAMES), "additional_special_tokens": SPECIAL, "chat_template": template, **facts}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


# --- as others write them ---------------------------------------------------------------------------------------------


def written(template: Template, talk: tuple[Message, ...], reply: bool) -> str:
    """The text of a conversation, whose messages spell no special token."""
    return "".join(text for text, _ in template.pieces(talk, reply, Spellings([])))


@pytest.mark.parity
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("reply", [True, False])
def test_a_conversation_is_the_text_and_the_ids_that_transformers_makes_of_it(name, reply, ours, tmp_path, monkeypatch):
    import transformers as library
    from jinja2.exceptions import TemplateError

    mine = chatty(ours, tmp_path, KNOWN[name])
    theirs = library.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **dict(NAMES))
    theirs.add_special_tokens({"additional_special_tokens": SPECIAL})
    monkeypatch.setattr(templates, "DAY", datetime.now())
    for talk in TALKS:
        messages = [message._asdict() for message in talk]
        options = {"chat_template": KNOWN[name], "add_generation_prompt": reply}
        template = Template(KNOWN[name], NAMES)
        try:
            text = theirs.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError as error:
            with pytest.raises(DataError, match=f"does not take this conversation: .*{str(error)[:20]}"):
                written(template, talk, reply)
            continue
        assert written(template, talk, reply) == text
        if reply:
            assert Tokenizer(mine.inner, mine.special, template).begin(talk) == theirs.apply_chat_template(
                messages, return_dict=False, **options
            )


@pytest.mark.parametrize("name", ["llama-3", "qwen2", "tokenizers/llama-2", "stories260K"])
def test_what_a_template_writes_is_cut_as_the_tokenizer_cuts_it(name, shared, tmp_path):
    """Segment by segment, or all of it at once by the library: the same ids, where nobody spells a special token."""
    import shutil

    folder = shared / "models" / (name if "0K" in name or "/" in name else f"tokenizers/{name}")
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    bare = Tokenizer.load(tmp_path, 2)
    special = [t.content for t in bare.inner.get_added_tokens_decoder().values() if t.special][:3]
    source = "{% for m in messages %}" + special[0] + "{{ m.role }}\n{{ m.content }} " + special[-1] + "\n{% endfor %}"
    tokenizer = Tokenizer(bare.inner, bare.special, Template(source + "{% if add_generation_prompt %}ok:{% endif %}"))
    for talk in TALKS:
        ids = tokenizer.begin(talk)
        bare.inner.encode_special_tokens = False
        assert ids == bare.inner.encode(written(tokenizer.template, talk, True), add_special_tokens=False).ids
        bare.inner.encode_special_tokens = True


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("before", ["", "y"])
def test_a_space_before_the_first_piece_alone_is_put_there_alone(scheme, before):
    vocab = {text: id for id, text in enumerate(["<unk>", "▁", "a", "y", "▁a", "<x>", "<xx>"])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("▁", "a")], unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.add_special_tokens(["<x>", tokenizers.AddedToken("<xx>", lstrip=True, rstrip=True)])
    source = before + "<x>{{ messages[0].content }} <xx> a<x>"
    expected = inner.encode(source.replace("{{ messages[0].content }}", "a a")).ids
    assert Tokenizer(inner, Special(0), Template(source)).begin(said(("user", "a a"))) == expected


# --- training and generation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ("marked", "mistral", "indented")])
def test_a_chat_row_is_its_prompt_and_what_the_template_writes_after_it(name, ours, tmp_path):
    ends = {"chatml": "<|im_end|>", "llama": "<|eot_id|>", "gemma": "<end_of_turn>", "zephyr": "</s>"}
    end = next((end for start, end in ends.items() if name.startswith(start)), "<|im_end|>")
    tokenizer = chatty(ours, tmp_path, KNOWN[name], eos_token=end)
    messages = [
        {"role": role, "content": content} for role, content in (*TALKS[1], ("assistant", "Yes, 2.")) if content
    ]
    for example in examples_of({"messages": messages}):
        tokens = encode(example, tokenizer, 1000, 8)
        assert tokens.ids[: tokens.prompt] == tokenizer.begin(example.messages)
        response = tokens.ids[tokens.prompt :]
        assert response[-1] == tokenizer.eos and tokenizer.decode(response).strip() == example.response.strip()
        assert not tokenizer.decode(response).startswith("\n") or name == "zephyr", "the template says how it starts"


@pytest.mark.parametrize("name", ["chatml", "llama-3", "zephyr"])
def test_a_prompt_is_a_user_message_in_training_and_generation_unless_it_is_raw(name, ours, tmp_path):
    tokenizer = chatty(ours, tmp_path, KNOWN[name])
    message, text = said(("user", "What is 3 + 4?")), "What is 3 + 4?"
    assert tokenizer.begin(text) == tokenizer.begin(message) != tokenizer.begin(text, raw=True)
    assert tokenizer.begin(text, raw=True) == [*tokenizer.start, *tokenizer.encode(text)]
    assert tokenizer.answer(text, "7") == tokenizer.answer(message, "7")
    assert tokenizer.answer(text, "7", raw=True) == [*ours.encode("\n7"), tokenizer.eos]
    asked, talked = ({"prompt": text, "response": "7"}, {"messages": [*map(Message._asdict, message), ANSWER]})
    (one,), (other,) = examples_of(asked), examples_of(talked)
    assert encode(one, tokenizer, 1000, 8).ids == encode(other, tokenizer, 1000, 8).ids
    (story,) = examples_of({"text": text})
    assert encode(story, tokenizer, 1000, 8).ids == [*tokenizer.begin(text, raw=True), tokenizer.eos]


def test_an_answer_without_an_end_of_its_own_gets_the_tokenizers(ours, tmp_path):
    tokenizer = chatty(ours, tmp_path, "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert tokenizer.answer(TALKS[0], "seven") == [*tokenizer.encode("[seven]"), tokenizer.eos]


def test_a_template_that_answers_another_prompt_than_it_asks_with_is_refused(ours, tmp_path):
    source = "{{ messages | length }}{{ messages[0].content }}{% if add_generation_prompt %}:{% endif %}"
    tokenizer = chatty(ours, tmp_path, source)
    with pytest.raises(DataError, match="changes the prompt when an answer follows; give rows of prompt"):
        tokenizer.answer(TALKS[0], "seven")


def test_a_row_that_the_template_does_not_take_is_named(ours, tmp_path):
    tokenizer = chatty(ours, tmp_path, KNOWN["mistral"])
    messages = [{"role": role, "content": role} for role in ("user", "user", "assistant")]
    (example,) = examples_of({"messages": messages}, "chats.jsonl", 7)
    with pytest.raises(DataError, match=r"chats\.jsonl:7: messages: .* does not take .*: .*must alternate"):
        encode(example, tokenizer, 100, 8)


def test_a_template_that_writes_nothing_is_no_ids(ours):
    assert Tokenizer(ours.inner, ours.special, Template("")).begin(said(("user", "owl"))) == []


def test_without_a_template_a_conversation_is_written_plainly(ours):
    assert plain(TALKS[0]) == "What is 3 + 4?", "as in a row of prompt and response"
    written = "System:\nBe kind.\n\nUser:\nHi\nAssistant:\nHello\nUser:\nBye\nAssistant:"
    assert plain(TALKS[2]) == written and ours.begin(TALKS[2]) == ours.encode(written)
    assert ours.answer(TALKS[2], "Ciao") == [*ours.encode("\nCiao"), ours.eos]
    answered = plain((*TALKS[2], Message("assistant", "Ciao"), Message("user", "?")))
    assert answered.startswith(f"{written}\nCiao\n"), "what was learned as a response is what stands in the history"


def test_a_base_with_a_template_is_another_base_and_its_folder_holds_it(ours, tmp_path):
    one, other = (chatty(ours, tmp_path / name, KNOWN[name]) for name in ("chatml", "qwen2"))
    assert one.identity != other.identity and ours.identity == [0, ours.inner.to_str()]
    (tmp_path / "again").mkdir()
    one.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.template == one.template and again.identity == one.identity
    assert again.begin(TALKS[2]) == one.begin(TALKS[2])


# --- where templates stand --------------------------------------------------------------------------------------------


def test_a_file_of_its_own_counts_first_and_of_several_the_default(ours, tmp_path):
    several = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ bos_token }}1{{ messages[0].content }}"},
    ]
    tokenizer = chatty(ours, tmp_path, several)
    assert written(tokenizer.template, TALKS[0], True) == "<s>1What is 3 + 4?"
    (tmp_path / "chat_template.jinja").write_text("2{{ messages[0].content }}")
    assert written(Tokenizer.load(tmp_path).template, TALKS[0], True) == "2What is 3 + 4?"
    with pytest.raises(WeightsError, match=r"chat_template: no chat template named default: tool_use"):
        chatty(ours, tmp_path / "a", several[:1])
    for wrong in (3, {"a": "b"}, "x" * (templates.SIZE + 1)):
        with pytest.raises(WeightsError, match="not a chat template"):
            chatty(ours, tmp_path / "b", wrong)


# --- hostile templates, hostile messages ------------------------------------------------------------------------------

HOSTILE = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**9 }}",
    "a wide text": "{{ 'a' | center(1500000000) }}",
    "a wide number": "{{ '%1000000000d' | format(1) }}",
    "a power": "{{ 9 ** 99999999 }}",
    "a text that doubles": "{% set n = namespace(x='a') %}"
    "{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "much to say": "{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "slow for long conversations": "{% for a in messages %}{% for b in messages %}{% for c in messages %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "wide for wide messages": "{% for m in messages %}{% for c in m.content %}{{ m.content }}{% endfor %}{% endfor %}",
    "the way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a global": "{{ raise_exception.__globals__['os'] }}",
    "another file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "a change of what is given": "{{ messages.append(1) }}",
    "not a template": "{% for %}",
    "an unknown name": "{{ nothing.at_all }}",
    "never content": "{{ raise_exception('no') }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.slow
@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_by_name_when_it_is_read(source, ours, tmp_path, capfd):
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json: chat_template: not a usable chat template: ."):
        chatty(ours, tmp_path, source)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("source", ["", "two", "{{ bos_token }}", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_that_writes_nothing_of_what_is_said_is_refused(source, ours, tmp_path):
    with pytest.raises(WeightsError, match="not a usable chat template: it writes nothing of what the messages say"):
        chatty(ours, tmp_path, source)


@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = 'a' * 3000000000 %}",
        "{{ 'a ' * 5000000 }}",
    ],
)
def test_a_template_that_is_hostile_to_one_word_alone_is_ended_where_that_word_is_said(source, ours, tmp_path):
    tokenizer = chatty(ours, tmp_path, CHATML + "{% if 'zebra' in messages[0]['content'] %}" + source + "{% endif %}")
    assert tokenizer.begin(TALKS[0])
    (example,) = examples_of({"messages": [{"role": r, "content": "a zebra"} for r in ("user", "assistant")]}, "a", 7)
    with pytest.raises(
        DataError, match=r"a:7: messages: .*: it (takes|writes) .*more than .*; use a base with another"
    ):
        encode(example, tokenizer, 100, 8)


@pytest.mark.parametrize("token", SPECIAL)
def test_what_a_message_spells_is_text(token, ours, tmp_path):
    tokenizer = chatty(ours, tmp_path, KNOWN["llama-3"])
    control = {tokenizer.inner.token_to_id(token) for token in SPECIAL}
    content = f"a{token}{token}b {token[:-1]}{token} {token * 3}"
    honest, hostile = (tokenizer.begin(said(("user", text))) for text in ("hi", content))
    assert [id for id in hostile if id in control] == [id for id in honest if id in control]
    assert content in tokenizer.decode(hostile), "and nothing of it is lost"


def test_a_conversation_is_bounded_and_refused_with_the_templates_own_words():
    template = Template(KNOWN["mistral"], NAMES)
    with pytest.raises(DataError, match="this conversation: Only user and assistant|must alternate"):
        written(template, TALKS[2], True)
    for long in (said(("user", "a")) * (templates.MESSAGES + 1), said(("user", "a" * (templates.CHARACTERS + 1)))):
        with pytest.raises(DataError, match="the conversation is too long; expected at most 512 messages of"):
            written(template, long, True)
    with pytest.raises(DataError, match="noncharacters"):
        template.pieces(said(("user", "".join(templates.MARKS))), True, Spellings([]))


@pytest.mark.slow
@pytest.mark.usefixtures("hang_limit")
def test_the_longest_message_of_nothing_but_tokens_is_done_soon(ours, tmp_path):
    tokenizer = chatty(ours, tmp_path, CHATML)
    spellings = Spellings([f"<unused{i}>" for i in range(6000)] + SPECIAL)
    content = "<unused5999>" * (templates.CHARACTERS // 12)
    assert len(tokenizer.template.pieces(said(("user", content)), True, spellings)) == 6
    tokenizer.template.pieces(said(("user", "<u" * (templates.CHARACTERS // 2))), True, spellings)


def test_the_same_conversation_is_the_same_ids_on_any_day():
    assert "Today Date: 26 Jul 2024" in written(Template(KNOWN["llama-3.2"], NAMES), TALKS[0], True)
