"""Is a conversation that is asked of a mixture written as its base writes it, and read whole by its router?"""

import pytest
import torch

import moesaic
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.compose.mixture import save_mixture
from moesaic.errors import DataError, RecipeError
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Message, Template, Tokenizer

SOURCE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<{{ m.role }}>\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "sing of the owl"},
    {"role": "assistant", "content": "hoo"},
    {"role": "user", "content": "and again"},
]
MESSAGES = tuple(Message(**turn) for turn in TALK)


@pytest.fixture(scope="module", params=[Template(SOURCE), None], ids=["a template", "no template"])
def mixture(request, tmp_path_factory):
    """Two experts, one of which is chosen by a word that only the first message of the conversation has."""
    folder = tmp_path_factory.mktemp("loaded")
    for name in ("base", "birds", "sums", "router", "mixture"):
        (folder / name).mkdir()
    tokenizer = Tokenizer.train(["sing of the owl and again <user>\n<assistant>\n"], 290)
    tokenizer.template = request.param
    decoder = tiny_decoder(3, torch.float32, num_layers=1, vocab_size=290)
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint = load_base(folder / "base").fingerprint
    for seed, name in enumerate(("birds", "sums")):
        save_expert(folder / name, toy_expert(decoder, seed), fingerprint, {"name": name})
    router = KeywordRouter([["owl"], ["again"]])
    stored = StoredRouter(router, "keyword", ("birds", "sums"), "text", Selection(kind="soft"), {})
    save_router(folder / "router", stored, fingerprint, {})
    experts = {name: folder / name for name in ("birds", "sums")}
    save_mixture(folder / "mixture", folder / "base", experts, folder / "router", {})
    return moesaic.load(folder / "mixture")


def test_a_conversation_gets_what_its_ids_get_and_is_routed_by_all_of_it(mixture):
    ids = mixture.stored.tokenizer.begin(MESSAGES)
    ((expected,),) = mixture.engine.generate([ids], max_new_tokens=4)
    assert mixture.generate(TALK, max_new_tokens=4) == mixture.generate(MESSAGES, max_new_tokens=4) == expected
    assert mixture.route(TALK) == expected.routing and expected.routing.weights == {"birds": 0.5, "sums": 0.5}
    assert mixture.route(TALK[2:]).chosen == "sums", "without its beginning it is another one"


def test_several_are_answered_at_once_conversations_beside_texts(mixture):
    some = mixture.generate([TALK, "sing of the owl", TALK[:1]], max_new_tokens=2)
    assert some == [mixture.generate(one, max_new_tokens=2) for one in (TALK, "sing of the owl", TALK[:1])]
    assert [one.chosen for one in mixture.route([TALK[2:], TALK[:1]])] == ["sums", "birds"]
    one = mixture.stored.tokenizer
    assert one.begin(MESSAGES[:1]) == one.begin("sing of the owl"), "a text is a user message"
    assert (one.begin("sing of the owl", raw=True) == one.begin("sing of the owl")) == (one.template is None)
    assert mixture.generate([]) == []


@pytest.mark.parametrize(
    "prompt",
    [
        [*MESSAGES],
        [MESSAGES[0], *TALK[1:]],
        MESSAGES[0],
        TALK[0],
        {"messages": TALK},
        {"prompt": "sing of the owl"},
        ("sing of the owl", TALK),
        [{"messages": TALK}, "and again"],
    ],
)
def test_the_annotations_are_as_wide_as_what_is_answered(prompt, mixture):
    """The shape checks of the tests compare every call with the annotations."""
    made, routed = mixture.generate(prompt, max_new_tokens=2), mixture.route(prompt)
    several = isinstance(made, list)
    assert routed == ([one.routing for one in made] if several else made.routing)
    assert made == mixture.generate(iter(prompt) if several else prompt, max_new_tokens=2)


@pytest.mark.parametrize(
    ("talk", "field", "said"),
    [
        (TALK[:2], "messages", "nothing to answer"),
        ([{"role": "owl", "content": "hoo"}], r"messages\[0\]\.role", "unknown role"),
        ([{"role": "user"}], r"messages\[0\]\.content", "missing"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_message(talk, field, said, mixture):
    with pytest.raises(DataError, match=f"^{field}: {said}"):
        mixture.generate(talk, max_new_tokens=2)


def test_a_conversation_that_the_template_refuses_or_that_is_empty_is_named_by_its_place(mixture):
    system = [{"role": "system", "content": "be brief"}, *TALK]
    if mixture.stored.tokenizer.template is None:
        assert mixture.generate(system, max_new_tokens=2).ids
    else:
        with pytest.raises(DataError, match=r"prompts\[1\]\.messages: the base's chat template .* no system messages"):
            mixture.generate([TALK, system], max_new_tokens=2)
    with pytest.raises(RecipeError, match=r"prompts\[1\]: the prompt is empty"):
        mixture.generate([TALK, []], max_new_tokens=2)


def test_the_default_type_of_the_caller_changes_nothing(mixture):
    torch.set_default_dtype(torch.float64)
    try:
        again = moesaic.load(mixture.folder)
        made = again.generate(TALK, max_new_tokens=3)
        assert torch.get_default_dtype() == torch.float64, "the caller's type is left alone"
    finally:
        torch.set_default_dtype(torch.float32)
    assert made == mixture.generate(TALK, max_new_tokens=3)
    assert {one.dtype for one in again.stored.model.parameters()} == {torch.float32}
