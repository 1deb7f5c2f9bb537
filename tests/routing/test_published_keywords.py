"""Property: the published keyword rules of the fifth source system decide as published, their defects included.

They test in order whether a word occurs anywhere in the prompt: math, code, knowledge, conversation, else reasoning.
"""

from pathlib import Path

import pytest

from moesaic.recipe import read
from moesaic.routing.routers import KeywordRouter

RECIPES = Path(__file__).parents[2] / "recipes"
RULES = {
    "math": ["calculate", "math", "+", "-", "*", "/", "="],
    "code": ["code", "python", "function", "program"],
    "knowledge": ["explain", "what is", "why", "how"],
    "conversation": ["hello", "hi", "how are", "help"],
    "reasoning": None,
}
PUBLISHED = {
    "What is 15 + 27?": "math",
    "Write a Python function to reverse a string.": "code",
    "Solve: x + 5 = 12": "math",
}
AS_MEANT = {
    "Calculate the area of a circle": "math",
    "Explain gravity": "knowledge",
    "Hello there": "conversation",
    "Name three mammals that lay eggs": "reasoning",
    "": "reasoning",
}
DEFECTS = {
    # signs in ordinary text
    "Name a well-known poet": "math",
    "Name **three** poets": "math",
    "yes and/or no": "math",
    "https://example.org": "math",
    # words inside other words
    "In the aftermath they wept": "math",
    "decode the secret": "code",
    "a new training programme": "code",
    "Show me a poem": "knowledge",
    "Which animal barks?": "conversation",
    "Tell me about this": "conversation",
    "a helpless child": "conversation",
    # order: the first expert wins, whatever the prompt is about
    "Explain this python program": "code",
    "How are you?": "knowledge",
    "hi, what is the time": "knowledge",
    "Hello! Can you help me with my math homework?": "math",
    # no word of the list
    "What's the capital of France?": "reasoning",
    "Add fifteen and two": "reasoning",
}


def router() -> KeywordRouter:
    return KeywordRouter([[*(words or [])] for words in RULES.values()], first=True)


@pytest.mark.parametrize("model", ["smollm2", "gemma"])
def test_the_recipes_have_the_published_words_in_the_published_order(model: str) -> None:
    recipe = read(RECIPES / f"five-domains-{model}.yaml")
    assert {name: expert.keywords for name, expert in recipe.experts.items()} == RULES
    assert [*recipe.experts] == [*RULES]
    assert [spec.match for spec in recipe.router.compare if spec.kind == "keyword"] == ["first", None]


@pytest.mark.parametrize(("text", "expert"), [*{**PUBLISHED, **AS_MEANT, **DEFECTS}.items()])
def test_a_prompt_goes_where_the_published_rules_send_it(text: str, expert: str) -> None:
    logits = router()([text])[0].tolist()
    assert [name for name, logit in zip(RULES, logits, strict=True) if logit == 0] == [expert]
    assert router()([text.upper()])[0].tolist() == logits


def test_whole_words_that_are_counted_do_without_most_of_these_defects() -> None:
    counting = KeywordRouter([[*(words or [])] for words in RULES.values()])
    silent = ["In the aftermath they wept", "Show me a poem", "Which animal barks?", "decode the secret"]
    assert not counting(silent).isfinite().any()
