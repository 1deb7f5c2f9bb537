"""Are the harness's log-likelihoods those of our own evaluator, of `transformers`, and of the expert that answered?"""

import json
import math
import warnings

import pytest
import torch

import moesaic
from moesaic.data.batches import Tokens
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.evaluate.harness_model import HarnessModel
from moesaic.evaluate.score import score
from moesaic.generate.loaded import load
from moesaic.routing import controls

PAIRS = [
    ("Once upon a time, there was", " a little girl named Lily"),
    ("The cat ", "sat on the mat."),
    ("", "One day, she saw a big dog"),
    ("Tom and Sue", " ran."),
    ("Tom and Sue", " swam home"),
]
TEXTS = ["Lily liked to play outside in the park.", "The sun was hot. " * 60]


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, 0) for one in arguments]


def named(lm, pairs=PAIRS):
    return lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)


@pytest.fixture(scope="module")
def mixture(parts):
    return load(parts.folder / "mixture")


def test_a_log_likelihood_is_that_of_our_own_evaluator(mixture):
    lm = HarnessModel(mixture, "two")
    made, tokenizer = named(lm), mixture.engine.tokenizer
    for (context, continuation), (found, _) in zip(PAIRS, made, strict=True):
        ids = tokenizer.begin(context + continuation, raw=True)
        prompt = tokenizer.begin(context.rstrip(" "), raw=True) if context else [tokenizer.eos]
        row = Tokens(ids if context else prompt + ids, len(prompt), "")
        weights = controls.fixed(mixture.names.index("two"), 1, 2)
        own = score(mixture.engine.mixture.score, {"it": [row]}, weights, 1)
        assert math.isclose(found, -own.nats[0], abs_tol=1e-6 * max(1, own.nats[0]))


def test_a_continuation_is_greedy_where_greedy_decoding_writes_it(mixture):
    lm = HarnessModel(mixture, "base")
    written = mixture.generate("the sum of", max_new_tokens=3, expert="base", raw=True)
    ids = mixture.engine.tokenizer.begin("the sum of", raw=True)
    other = [*written.ids[:-1], (written.ids[-1] + 1) % 250]
    for continuation, greedy in ((written.ids, True), (other, False)):
        assert lm.scored([(ids, continuation)], [ids], ["it"])[0][1] is greedy


def test_the_router_decides_from_the_context_and_its_choice_is_remembered(mixture):
    lm, parts = HarnessModel(mixture), {name: HarnessModel(mixture, name) for name in (*mixture.names, "base")}
    named(lm)
    for context in {context for context, _ in PAIRS if context}:
        assert lm.answered[context] == mixture.route(context.rstrip(" "), raw=True).chosen
    for name, alone in parts.items():
        named(alone)
        assert set(alone.answered.values()) == {name}


def test_a_long_text_is_scored_in_windows_and_each_token_counts_once(parts):
    model = load(parts.folder / "base")
    text = "the sum of two and two is four " * 40
    ids = model.engine.tokenizer.encode(text)
    assert len(ids) > 2 * model.context
    lm = HarnessModel(model)
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    whole, width, start = 0.0, model.context, 0
    while start < len(ids):
        count = min(width, len(ids) - start)
        before = ([lm.prefix_token_id, *ids])[max(0, start + count - width) : start + 1]
        row = Tokens([*before, *ids[start : start + count]], len(before), "")
        whole -= score(model.engine.mixture.score, {"it": [row]}, controls.fixed(-1, 1, 0), 1).nats[0]
        start += count
    assert math.isclose(found, whole, rel_tol=1e-6)


def test_generations_end_before_the_first_stop_string(mixture):
    lm = HarnessModel(mixture, "one")
    (whole,) = lm.generate_until(requests("generate_until", [("the sum of", {"max_gen_toks": 8})]))
    stop = whole[3:5]
    (cut,) = lm.generate_until(requests("generate_until", [("the sum of", {"until": [stop], "max_gen_toks": 8})]))
    assert cut == whole[: whole.index(stop)] and lm.answered["the sum of"] == "one"
    drawn = {"do_sample": True, "temperature": 5.0, "max_gen_toks": 8}
    first, again = (lm.generate_until(requests("generate_until", [("two", drawn)] * 2)) for _ in "ab")
    assert first == again and first[0] != first[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"num_beams": 3}, "num_beams"), ({"max_gen_toks": 4096}, "max_gen_toks"), ({"max_gen_toks": 0}, "0")],
)
def test_settings_of_a_generation_are_honoured_or_refused(mixture, given, said):
    with pytest.raises(RecipeError, match=said):
        HarnessModel(mixture).generate_until(requests("generate_until", [("two", given)]))


def test_chat_templates_and_unknown_experts_and_arguments_are_refused(mixture, parts):
    with pytest.raises(CompatibilityError, match="chat template"):
        HarnessModel(mixture).apply_chat_template([])
    with pytest.raises(RecipeError, match="did you mean 'one'"):
        HarnessModel(mixture, "onne")
    for arguments, said in {"expert=one": "path", "path=x,colour=red": "colour", "path=x,batch_size=-1": "-1"}.items():
        with pytest.raises(RecipeError, match=said):
            HarnessModel.create_from_arg_string(arguments)
    place = parts.folder / "mixture"
    lm = HarnessModel.create_from_arg_string(f"path={place},expert=two", {"batch_size": 3, "device": None})
    found, other = ([nats for nats, _ in named(one)] for one in (lm, HarnessModel(load(place), "two")))
    assert lm.batch_size == 3 and found == pytest.approx(other, rel=1e-6)


def test_the_entry_point_names_this_class():
    from importlib import import_module
    from pathlib import Path
    from tomllib import loads

    groups = loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    module, name = groups["lm_eval.models"]["moesaic"].split(":")
    assert getattr(import_module(module), name) is HarnessModel


@pytest.mark.parity
def test_stories260k_has_the_log_likelihoods_of_the_harness_on_transformers(shared):
    from lm_eval.models.huggingface import HFLM

    folder = shared / "models" / "stories260K"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    ours = HarnessModel(moesaic.load(folder))
    for (mine, most), (found, greedy) in zip(named(ours), named(theirs), strict=True):
        assert math.isclose(mine, found, abs_tol=1e-4) and most == greedy
    theirs.add_bos_token = False  # with it, the harness asks for the probability of <s> after <s> too
    asked = [(text,) for text in TEXTS]
    mine = ours.loglikelihood_rolling(requests("loglikelihood_rolling", asked))
    found = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", asked), disable_tqdm=True)
    assert torch.allclose(torch.tensor(mine), torch.tensor(found), atol=1e-4, rtol=1e-6), json.dumps([mine, found])
