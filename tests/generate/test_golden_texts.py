"""Property: a real pretrained model writes its published texts through tokenizer, decoder and engine."""

import json

import pytest
from safetensors.torch import load_file

from moesaic.adapters import attach
from moesaic.artefacts.base import load_base
from moesaic.config import Feature
from moesaic.generate import Engine
from moesaic.model.deciding import Decider
from moesaic.model.mixture import AdapterMixture
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter
from moesaic.testing import toy_expert


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def golden(folder):
    """Of every prompt its text, the ids it is read as, the whole text, and the ids of that; and the published text."""
    tensors, facts = load_file(folder / "golden.safetensors"), json.loads((folder / "golden.json").read_text())
    rows = [
        (row["prompt"], row["input_ids"], row["greedy_text"], tensors[f"greedy_ids_{index}"].tolist())
        for index, row in enumerate(facts["greedy"])
    ]
    return rows, facts["published_expectation"]


@pytest.fixture(scope="module")
def engine(folder):
    """The model as the base of a mixture whose expert changes all that it answers."""
    base = load_base(folder)
    attach(base.decoder, [toy_expert(base.decoder, 1)])
    router = KeywordRouter([["robot"]])
    decider = Decider.over(base.decoder, ("odd",), router, Feature.parse("text"), Selection(kind="soft"))
    mixture = AdapterMixture(base.decoder, decider, 0)
    return Engine(mixture, base.tokenizer)


def test_stories260k_writes_its_golden_texts(engine, golden):
    rows, _ = golden
    prompts = [prompt for prompt, *_ in rows]
    (new,) = {len(whole) - len(read) for _, read, _, whole in rows}
    made = engine.generate(prompts, max_new_tokens=new)
    for (prompt, read, text, whole), (found,) in zip(rows, made, strict=True):
        assert engine.tokenizer.begin(prompt) == read and read[0] == 1, "the model wants its BOS token first"
        assert found.routing.chosen == "base" and read + found.ids == whole, prompt
        assert prompt + found.text == text


@pytest.mark.slow
def test_stories260k_writes_the_text_that_llama2_c_publishes(engine, golden):
    """From its BOS token alone, greedily, 200 tokens."""
    ((found,),) = engine.generate([[1]], max_new_tokens=200)
    assert found.text == golden[1]
