"""Is every name that is served found, and every other one refused with the nearest?"""

import random

import pytest

from moesaic.serve.catalogue import Catalogue
from moesaic.serve.problems import Problem

MIX = Catalogue("mix", ("math", "code", "chat"))


def test_the_mixture_routes_and_its_experts_are_forced():
    assert MIX.ids == {"mix": None, "mix:math": "math", "mix:code": "code", "mix:chat": "chat", "mix:base": "base"}
    assert Catalogue("tiny", ()).ids == {"tiny": None}
    assert [card["parent"] for card in MIX.cards(0, 512)] == [None, "mix", "mix", "mix", "mix"]
    assert all(card["max_model_len"] == 512 and card["object"] == "model" for card in MIX.cards(0, 512))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("mix:mth", "did you mean 'mix:math'"),
        ("math", "did you mean 'mix:math'"),
        ("mx", "did you mean 'mix'"),
        ("gpt-4o", "expected mix, mix:math, mix:code, mix:chat, mix:base"),
        ("", "expected mix"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest(model, said):
    with pytest.raises(Problem, match=said) as caught:
        MIX.expert(model)
    assert caught.value.status == 404 and caught.value.body["error"]["param"] == "model"


def test_five_hundred_misspelt_experts_are_refused_each_with_the_right_name():
    rng, seen = random.Random(0), 0
    while seen < 500:
        name = rng.choice(MIX.experts)
        at, letter = rng.randrange(len(name)), rng.choice("qxyz")
        wrong = rng.choice([name[:at] + letter + name[at:], name[:at] + letter + name[at + 1 :]])
        with pytest.raises(Problem, match=f"did you mean 'mix:{name}'"):
            MIX.expert(f"mix:{wrong}")
        seen += 1


def test_lists_leave_the_allowed_without_the_excluded():
    assert MIX.allowed(None, ()) == {"math", "code", "chat", "base"}
    assert MIX.allowed(("math", "code"), ("code",)) == {"math"}
    assert MIX.allowed(None, ("base", "chat")) == {"math", "code"}
    for allow, exclude, field in ((("maths",), (), "routing.allow"), (None, ("codes",), "routing.exclude")):
        with pytest.raises(Problem) as caught:
            MIX.allowed(allow, exclude)
        assert caught.value.param == field and caught.value.status == 400
    with pytest.raises(Problem, match="leave nobody"):
        MIX.allowed(("math",), ("math",))
