"""Do completions have the texts, ids and log-probabilities that the engine and the model's own logits give?"""

import pytest
import torch

from moesaic.errors import DataError
from moesaic.generate import Engine
from moesaic.generate.completion import completions
from moesaic.generate.loaded import load
from moesaic.generate.sample import Sampling
from moesaic.testing import ByteTokenizer


@pytest.fixture(scope="module")
def mixture(parts):
    return load(parts.folder / "mixture")


def test_the_defaults_are_those_of_llamas_generator(mixture):
    texts = ["the sum", "def add"]
    made = mixture.text_completion(texts, max_gen_len=6, seed=3)
    for text, one in zip(texts, made, strict=True):
        (own,) = mixture.engine.generate(
            [mixture.engine.tokenizer.begin(text, raw=True)],
            max_new_tokens=6,
            sampling=Sampling(temperature=0.6, top_p=0.9, seed=3),
        )
        assert one.ids == own[0].ids and one.logprobs == [] and "".join(one.tokens) == one.generation
    greedy = mixture.text_completion(["the sum"], temperature=0, max_gen_len=6)[0]
    assert greedy.ids == mixture.generate("the sum", max_new_tokens=6, raw=True).ids


def test_echoed_tokens_have_the_log_probabilities_of_the_models_own_logits(parts):
    model = load(parts.folder / "base")
    (made,) = model.text_completion(["the sum of"], temperature=0, max_gen_len=5, logprobs=True, echo=True)
    ids = model.engine.tokenizer.begin("the sum of", raw=True)
    assert made.ids[: len(ids)] == ids and len(made.ids) == len(made.tokens) == len(made.logprobs)
    assert made.generation.startswith("the sum of") and made.logprobs[0] is None
    with torch.inference_mode():
        logs = parts.decoder(torch.tensor([made.ids])).logits[0].log_softmax(-1)
    own = [logs[at - 1, made.ids[at]].item() for at in range(1, len(made.ids))]
    assert made.logprobs[1:] == pytest.approx(own, abs=1e-4)
    (bare,) = model.text_completion(["the sum of"], temperature=0, max_gen_len=5, logprobs=True)
    assert bare.ids == made.ids[len(ids) :] and bare.logprobs == pytest.approx(made.logprobs[len(ids) :])
    assert "the sum of" + bare.generation == made.generation


def test_the_experts_that_answer_give_the_log_probabilities_of_the_prompt(mixture):
    found = {
        expert: mixture.text_completion(["two and two"], max_gen_len=1, logprobs=True, echo=True, expert=expert)[0]
        for expert in ("one", "two", "base")
    }
    assert len({tuple(one.logprobs[1:3]) for one in found.values()}) == 3
    (alone,) = mixture.token_completion([[5]], max_gen_len=2, logprobs=True, echo=True)
    assert alone.ids[0] == 5 and alone.logprobs[0] is None and len(alone.logprobs) == len(alone.ids)


def test_ids_of_tokens_are_continued_as_their_text_is(mixture):
    ids = mixture.engine.tokenizer.begin("the sum", raw=True)
    assert mixture.token_completion([ids], seed=1, max_gen_len=4) == mixture.text_completion(
        ["the sum"], seed=1, max_gen_len=4
    )


def test_a_router_that_decides_before_every_token_gives_the_prompt_its_own_log_probabilities():
    from small_mixtures import mixture as small

    engine = Engine(small("token"), ByteTokenizer())
    ids, settings = [5, 60, 7, 90, 11], {"max_new_tokens": 3, "sampling": Sampling()}
    changing, held = (completions(engine, [ids], 257, settings, True, True, steady)[0] for steady in (False, True))
    with torch.inference_mode():
        logs = engine.mixture.score(torch.tensor([ids]), None)[0].log_softmax(-1)
    own = [logs[at - 1, ids[at]].item() for at in range(1, len(ids))]
    assert changing.logprobs[1 : len(ids)] == pytest.approx(own) and changing.ids == held.ids
    assert held.logprobs[1 : len(ids)] != pytest.approx(own)


@pytest.mark.parametrize("ids", [[1, -1], [10**6]])
def test_what_is_no_token_is_refused_by_its_place(mixture, ids):
    with pytest.raises(DataError, match=r"prompts\[1\]: not a token; expected ids from 0 to"):
        mixture.token_completion([[1], ids], max_gen_len=2)
