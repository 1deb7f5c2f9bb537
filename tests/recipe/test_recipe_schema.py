"""Property: what a recipe knows about itself."""

import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from moesaic import recipe as room
from moesaic.errors import RecipeError
from moesaic.recipe import RESERVED, Recipe, parse
from moesaic.sections.layers import layer_range
from moesaic.sections.names import validate_name
from moesaic.sections.section import Section
from moesaic.sections.training import Train, TrainOverride


def made(**changes: Any) -> Recipe:
    mapping: dict[str, Any] = {
        "name": "x",
        "base": {"path": "a/b"},
        "train": {"steps": 10},
        "experts": {
            "one": {"kind": "lora", "data": {"demo": "code"}},
            "two": {"kind": "lora", "data": {"demo": "math"}, "train": {"steps": 30, "lr": [0.1, 0.2]}},
            "far": {"kind": "lora", "path": "c/d", "examples": "p.jsonl"},
        },
        "router": {"kind": "linear"},
    }
    return parse(mapping | changes)


def test_an_override_has_the_fields_of_train() -> None:
    assert list(TrainOverride.model_fields) == list(Train.model_fields)
    assert all(value is None for _, value in TrainOverride())
    with pytest.raises(ValidationError):
        TrainOverride.model_validate({"warmup": 2})


def test_train_of() -> None:
    recipe = made(evaluate={"joint_wide": {"steps": 5, "batch": 2}})
    assert recipe.train_of("one") == recipe.train_of("far") == recipe.train == Train(steps=10)
    assert recipe.train_of("two") == Train(steps=30, lr=[0.1, 0.2])
    assert recipe.train_of("joint") == Train(steps=40)
    assert recipe.train_of("joint_wide") == Train(steps=5, batch=2)
    with pytest.raises(RecipeError, match="did you mean 'joint'"):
        recipe.train_of("jiont")
    foreign = made(experts={"far": {"kind": "lora", "path": "c/d", "examples": "p.jsonl"}})
    with pytest.raises(RecipeError, match="no expert has data"):
        foreign.train_of("joint")


def test_an_expert_of_tensor_trains_says_its_factors_and_its_start() -> None:
    factors = {"q_proj": [[16, 8], [8, 16]], "v_proj": [[128], [4, 4]]}
    own = {"kind": "tt_lora", "rank": 5, "alpha": 12, "targets": ["q_proj", "v_proj"], "data": {"demo": "code"}}
    found = made(experts={"one": {**own, "factors": factors, "init": "published"}}).experts["one"]
    assert (found.kind, found.factors, found.init, found.scale) == ("tt_lora", factors, "published", 12.0)
    assert parse(made(experts={"one": own | {"factors": factors}}).model_dump()).experts["one"].factors == factors
    plain = made(experts={"one": own, "two": {"kind": "lora", "rank": 4, "alpha": 12, "data": {"demo": "math"}}})
    assert (plain.experts["one"].factors, plain.experts["one"].init, plain.experts["two"].scale) == (
        "auto",
        "zero",
        3.0,
    )
    assert "factors" not in plain.model_dump()["experts"]["two"], "what it has no use for is not told"
    bare = {"one": {"kind": "tt_lora", "data": {"demo": "code"}}, "two": {"kind": "lora", "data": {"demo": "math"}}}
    assert [expert.scale for expert in made(experts=bare).experts.values()] == [8.0, 2.0]


def test_the_router_may_read_the_bare_trunk_but_no_deeper() -> None:
    assert made().router.depth is None
    assert made(router={"kind": "linear", "compare": [{"kind": "linear", "feature": "hidden@9"}]}).router.depth is None
    deep = {"one": {"kind": "lora", "layers": "2..", "data": {"demo": "code"}}}
    assert made(experts=deep, router={"kind": "linear", "feature": "hidden@2_last"}).router.depth == 2
    with pytest.raises(RecipeError, match=r"expert 'one' adapts layers from 2, but the router reads hidden@3; set"):
        made(experts=deep, router={"kind": "linear", "feature": "hidden@3"})


def test_a_recipe_travels_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(made())) == made()


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        made().seed = 3


def sections(of: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    for section in of.__subclasses__():
        yield from (section, *sections(section))


def test_every_key_says_what_it_is() -> None:
    bare = [f"{s.__name__}.{key}" for s in sections() for key, field in s.model_fields.items() if not field.description]
    assert not bare
    assert "Number of optimiser steps." in str(Recipe.model_json_schema())


def test_public_names_are_there() -> None:
    assert sorted(room.__all__) == sorted(set(room.__all__))
    assert all(hasattr(room, name) for name in room.__all__)


@pytest.mark.parametrize(
    ("text", "layers"),
    [(None, range(8)), ("2..", range(2, 8)), ("2..6", range(2, 6)), ("..4", range(4)), ("0..8", range(8))],
)
def test_layer_range(text: str | None, layers: range) -> None:
    assert layer_range(text, 8) == layers


@pytest.mark.parametrize(
    "text", ["", "..", "2", "2...", "-1..", "2..2", "4..2", "..0", "8..", "..9", "2..9", "²..", " 2.."]
)
def test_not_a_layer_range(text: str) -> None:
    with pytest.raises(RecipeError):
        layer_range(text, 8)


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "9", "x" * 96, "console", "com10", "base"])
def test_names(name: str) -> None:
    assert validate_name(name, "a run") == name


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "a/b", "..", "a b", "a\n", "é", "x" * 97, "con", "CON", "Lpt9.txt", "nul.", "a."]
)
def test_not_names(name: str) -> None:
    with pytest.raises(RecipeError, match="not a name for an expert") as caught:
        validate_name(name, "an expert")
    assert caught.value.got == repr(name)


@pytest.mark.parametrize("name", [*RESERVED, "Router"])
def test_reserved(name: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"experts.{name}: a reserved name")):
        made(experts={name: {"kind": "lora", "data": {"demo": "code"}}})


def test_a_whole_model_is_not_trained_from_a_base_in_few_bits():
    data = {"train": "x.jsonl", "test": "y.jsonl"}

    def recipe(kind: str) -> dict:
        experts = {"one": {"kind": kind, "data": data}, "two": {"kind": kind, "data": data}}
        router = {"kind": "mlp", "feature": "embedding_mean"}
        return {"name": "small", "base": {"path": "shipped:tiny", "bits": 8}, "experts": experts, "router": router}

    assert parse(recipe("lora")).base.bits == 8
    with pytest.raises(RecipeError, match=r"base\.bits: 'one' trains weights of the base, in all their bits"):
        parse(recipe("model"))
