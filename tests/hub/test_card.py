"""Is a card what the hub and a reader of Markdown take it for, and do texts on it stay text, whatever they spell?"""

import re
from copy import deepcopy

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from moesaic.errors import WeightsError
from moesaic.hub.card import mixture_card, model_card
from moesaic.sections.places import HubId

TARGET = HubId("me/mine", "v1")
ORIGIN = {"place": "org/base@main", "commit": "0123456789abcdef"}
MODEL = {"family": "llama", "parameters": 12345, "auto_class": "AutoModelForCausalLM"}
EXPERTS = [
    {"name": "math", "kind": "lora", "rank": 8, "parameters": 1234, "origin": {}, "disabled": False},
    {"name": "code", "kind": "ffn", "rank": None, "parameters": 99, "origin": {"place": "a/b@v2"}, "disabled": True},
]
ROUTER = {"router": "linear", "feature": "hidden@2_mean", "selection": {"kind": "top_k", "k": 2}, "metrics": {}}
EVALUATION = {
    "measure": "nats",
    "verdict": {"sentence": "Use the mixture: 2.767 nats per token; 8.6 MB active."},
    "controls": {
        "expert:math": {"nats": {"all": 3.1}, "versus_router": {"difference": 0.25, "interval": [-0.125, 0.5]}},
        "router": {"nats": {"all": 2.767}, "versus_router": None},
    },
    "domains": ["math", "code"],
    "intervals": {"level": 0.95},
}


def mixture(**changes) -> str:
    base = {"parameters": 1234567, "fingerprint": "abcdef0123456789", "origin": ORIGIN}
    values = {
        "name": "demo",
        "base": base,
        "experts": EXPERTS,
        "router": ROUTER,
        "evaluation": EVALUATION,
        "labels": False,
    }
    return mixture_card(TARGET, **{"license": None, **deepcopy(values), **changes})


def tokens(card: str) -> list[str]:
    """What Markdown makes of a card below its front matter: the kinds of its tokens, those within lines too."""
    parsed = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(ModelCard(card).text)
    return [kind for token in parsed for kind in (token.type, *(inner.type for inner in token.children or ()))]


def shown(card: str) -> str:
    """The text of a card as it is read."""
    parsed = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    return "\n".join(
        "".join(inner.content for inner in token.children) if token.children else token.content for token in parsed
    )


def test_the_card_of_a_model_says_where_it_is_from_and_how_to_load_it():
    card = model_card(TARGET, license="apache-2.0", origin=ORIGIN, **MODEL)
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "base_model": "org/base",
        "tags": ["llama", "moesaic"],
    }
    read = shown(card)
    assert "llama with 12,345 parameters" in read and "from org/base@main at commit 0123456789abcdef" in read
    assert 'AutoModelForCausalLM.from_pretrained("me/mine", revision="v1")' in read
    assert 'moesaic.load_model("me/mine@v1")' in read
    assert "commit" not in shown(model_card(HubId("me/mine"), license=None, origin={}, **MODEL))
    assert "base_model" not in model_card(HubId("org/base"), license=None, origin=ORIGIN, **MODEL)


def test_the_card_of_a_mixture_tells_its_parts_and_the_verdict():
    read = shown(mixture())
    assert 'moesaic.load("me/mine@v1")' in read and EVALUATION["verdict"]["sentence"] in read
    for cells in (
        ("base", "1,234,567 parameters, from org/base@main at commit 0123456789abcdef, fingerprint abcdef012345"),
        ("expert math", "lora of rank 8, 1,234 parameters"),
        ("expert code", "ffn, 99 parameters, from a/b@v2, never chosen"),
        ("router", "linear on hidden@2_mean, top_k of 2"),
        ("expert:math", "3.100", "+0.250 [-0.125, +0.500]"),
        ("mixture", "2.767", ""),
    ):
        assert "\n\n\n".join(cells) in read
    assert "On test rows of math, code." in read and "with its 95% interval" in read
    assert ModelCard(mixture()).data.tags == ["mixture-of-experts", "ffn", "lora", "moesaic"]
    assert ModelCard(mixture()).data.license is None


def test_a_mixture_that_gives_labels_is_told_in_its_own_measure():
    scores = {"controls": {"router": {"score": {"all": 0.5}, "versus_router": None}}, "measure": "score"}
    read = shown(mixture(evaluation={**EVALUATION, **scores}, labels=True))
    assert "contender\n\n\nscore" in read and "mixture\n\n\n0.500" in read and "mixture.classify(" in read


def test_without_an_evaluation_it_says_what_is_known_of_the_router_or_that_nothing_is():
    few = {**ROUTER, "metrics": {"accuracy_held_out": 0.95}}
    assert "sends 95.0% of a few held-out prompts" in shown(mixture(evaluation={}, router=few))
    assert "It was not evaluated" in shown(mixture(evaluation={}))


HOSTILE = [
    "x\n---\nlicense: mit",
    "\n---\n\n# Owned",
    "a: b",
    "- a",
    "# not a heading",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://example.org)",
    "![x](https://example.org/x.png)",
    "<https://example.org>",
    "https://example.org www.example.org me@example.org",
    "*bold* _it_ **b** __b__ ~~gone~~ $x^2$",
    "a | b",
    "`code` ``` ~~~",
    "back\\slash \\",
    "&lt;b&gt; &#60;",
    "{{ 7 * 7 }} {% for x in y %}",
    "\u202egnp.exe",
    "\x1b[31mred",
    "\ud800half",
    "| end |\n|---|",
    "1. one\n2. two",
]


def everywhere(text: str) -> tuple[str, str]:
    """Both cards with a text wherever one may stand."""
    evaluation = deepcopy(EVALUATION) | {"verdict": {"sentence": text}, "domains": [text, "code"]}
    evaluation["controls"][text] = evaluation["controls"].pop("expert:math")
    origin = {"place": text, "commit": text}
    experts = [{**EXPERTS[0], "name": text, "kind": text, "origin": origin}, EXPERTS[1]]
    router = {"router": text, "feature": text, "selection": {"kind": text, "k": None}, "metrics": {}}
    base = {"parameters": 1234567, "fingerprint": text, "origin": origin}
    parts = {"base": base, "experts": experts, "router": router | {"encoder_origin": origin}}
    return (
        mixture(name=text, license=text, evaluation=evaluation, **parts),
        model_card(TARGET, license=text, origin=origin, **{**MODEL, "family": text}),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_text(text):
    for card, calm in zip(everywhere(text), everywhere("calm"), strict=True):
        found, expected = ([kind for kind in tokens(one) if not kind.startswith("text")] for one in (card, calm))
        assert found == expected
        front = ModelCard(card).data.to_dict()
        assert front.keys() == ModelCard(calm).data.to_dict().keys()
        assert isinstance(front["license"], str) and "\n" not in front["license"]
        bare = re.sub(r"(?s)^---.*?\n---\n|```.*?```|`[^`\n]*`", "", re.sub(r"\\[^\w\s]", "", card))
        assert not re.search(r"://|www\.|@", bare), "which the hub makes links of"
        assert not re.search("[\x1b\u202e\ud800]", card)


def test_no_text_fills_a_card():
    assert len(everywhere("x" * 100_000)[0]) < 30_000


def test_a_text_is_shown_as_it_is_spelled():
    for text in HOSTILE[6:17]:
        assert " ".join(text.split()) in shown(mixture(name=text)), text


@pytest.mark.parametrize(
    "changes",
    [
        {"router": {key: value for key, value in ROUTER.items() if key != "feature"}},
        {"evaluation": {**EVALUATION, "controls": {"router": {"nats": {"all": "<b>"}, "versus_router": None}}}},
        {"evaluation": {**EVALUATION, "intervals": []}},
        {"experts": [{**EXPERTS[0], "parameters": "many"}]},
    ],
)
def test_what_is_no_figure_is_refused_in_one_line(changes):
    with pytest.raises(WeightsError, match="^me/mine@v1: a manifest or an evaluation has unexpected values"):
        mixture(**changes)


def test_only_names_get_into_code():
    with pytest.raises(WeightsError, match="not a name"):
        model_card(TARGET, license=None, origin={}, **{**MODEL, "auto_class": 'x")\nimport os'})
