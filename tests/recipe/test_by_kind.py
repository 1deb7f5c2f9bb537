"""Is the section of an expert that of its kind, for every row of the table, and is what it dumps what it always was?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from moesaic.errors import RecipeError
from moesaic.files import digest
from moesaic.kinds import KINDS
from moesaic.kinds.ffn import FFNKind
from moesaic.recipe import Recipe, parse
from moesaic.recipe.json_schema import json_schema
from moesaic.sections import document
from moesaic.sections.expert import Expert

FOLDER = Path(__file__).parents[2] / "recipes"
ROUTER, FILES = {"kind": "linear"}, {"train": "a.jsonl", "test": "b.jsonl"}
LABELLED = {"task": "mrpc", **FILES}


class WeirdSection(Expert):
    """An expert of a kind that only this test knows."""

    kind: Literal["weird"]
    """Kind of the expert: weird."""
    weight: int = 3
    """A key that no other kind has."""


class WeirdKind(FFNKind):
    """A kind that only this test knows."""

    word = "weird"
    section = WeirdSection
    changes = "bends"


def recipe(**experts: dict[str, Any]) -> Recipe:
    return parse({"name": "x", "base": {"path": "base"}, "experts": experts, "router": ROUTER})


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "weird", WeirdKind())
        Recipe.model_rebuild(force=True)
        yield
    Recipe.model_rebuild(force=True)


def test_a_row_in_the_table_is_a_kind_of_expert(one_more: None) -> None:
    found = recipe(one={"kind": "weird", "weight": 5, "data": FILES}, two={"kind": "ffn", "data": FILES})
    assert isinstance(found.experts["one"], WeirdSection) and found.experts["one"].weight == 5
    assert found.site == "ffn" and parse(found.model_dump()) == found
    for expert, what in (
        ({"kind": "ffn", "weight": 5}, "experts.one.weight: unknown key; it goes with kind: weird"),
        ({"kind": "weird", "weihgt": 5}, "experts.one.weihgt: unknown key; did you mean 'weight'?"),
        ({"kind": "wierd"}, "experts.one.kind: .*expected 'lora', .*'model' or 'weird'; .*did you mean 'weird'?"),
    ):
        with pytest.raises(RecipeError, match=what):
            recipe(one={"data": FILES, **expert})
    assert "WeirdSection" in json_schema()["$defs"]


def test_the_table_is_as_it_was_afterwards() -> None:
    with pytest.raises(RecipeError, match=r"experts.one.kind: .* 'ffn' or 'model'; got 'weird'"):
        recipe(one={"kind": "weird", "data": FILES})


def test_an_expert_has_the_keys_of_its_kind_alone() -> None:
    for word, kind in KINDS.items():
        found = recipe(one={"kind": word, "data": FILES}).experts["one"]
        assert type(found) is kind.section
        assert {*found.model_dump()} <= {*kind.section.model_fields}


EXPERTS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "data": FILES},
    "lora, written out": {
        **{"kind": "lora", "rank": 4, "alpha": 3, "targets": ["q_proj", "v_proj"], "layers": "1..", "data": FILES},
        **{"keywords": ["a"], "train": {"steps": 3}},
    },
    "lora, swept": {"kind": "lora", "data": FILES, "sweep": {"targets": [["q_proj"]], "rank": [2, 4], "lr": [0.1]}},
    "lora, trained": {"kind": "lora", "path": "org/name@main", "examples": "a.jsonl"},
    "lora, labelled": {"kind": "lora", "data": LABELLED, "head": "frozen", "sweep": {"alpha": [1.0]}},
    "lora, labelled and trained": {"kind": "lora", "data": LABELLED, "path": "org/name@main"},
    "tt_lora": {"kind": "tt_lora", "data": FILES},
    "tt_lora, written out": {
        **{"kind": "tt_lora", "rank": 5, "alpha": 12, "targets": ["q_proj"], "init": "published", "data": FILES},
        "factors": {"q_proj": [[16, 8], [8, 16]]},
    },
    "tt_lora, trained": {"kind": "tt_lora", "path": "org/name@main", "data": FILES},
    "ffn": {"kind": "ffn", "data": FILES, "anchor": True, "layers": "..4"},
    "ffn, swept": {"kind": "ffn", "data": FILES, "sweep": {"lr": [0.1, 0.2]}},
    "ffn, trained": {"kind": "ffn", "data": FILES, "path": "org/name@main", "ignore_rest": True},
    "model": {"kind": "model", "data": FILES},
    "model, trained": {"kind": "model", "path": "org/name@main", "examples": ["a.jsonl"]},
}

STORED = {
    "lora": "0e87bf480c9ac901",
    "lora, written out": "3886e8173b384945",
    "lora, swept": "96c4a6041b62e444",
    "lora, trained": "655d126e1b1bc712",
    "lora, labelled": "06d5f7a28ec65d25",
    "lora, labelled and trained": "744862bf900c0859",
    "tt_lora": "cfffa2b767578541",
    "tt_lora, written out": "91b2cf23d5bbe261",
    "tt_lora, trained": "dcbd81405ea2caf2",
    "ffn": "72c3c9b37ca1e593",
    "ffn, swept": "1aec6355c95d722c",
    "ffn, trained": "88793715c41db38c",
    "model": "6fb8f1815dd32ec8",
    "model, trained": "4cffbe86776d2069",
    "continual.yaml": "7f53203010c1286d",
    "demo.yaml": "78ed79fcaae9e6f5",
    "five-domains.yaml": "ada242e0845e9883",
    "five-domains-gemma.yaml": "5a19cf566fba9845",
    "five-domains-scratch.yaml": "062e5a37bfbd66c8",
    "five-domains-smollm2.yaml": "5a19cf566fba9845",
    "franken-stories.yaml": "268a727bd035c91f",
    "gated-pair.yaml": "ff15705c59370f32",
    "routing.yaml": "b288a28a13109c37",
    "stories.yaml": "56c7bc1692057292",
    "ttlora-eight.yaml": "030a11079e0812dc",
    "ttlora-glue.yaml": "7985f195b1d41c7f",
    "ttlora-llama-3-70b.yaml": "b517b41fd3456c0b",
    "ttlora-llama-3-8b.yaml": "b517b41fd3456c0b",
    "ttlora-llama-3.2-1b.yaml": "2f7bef6ac23422df",
    "ttlora-roberta-base.yaml": "c068cdf498684955",
    "smollm2.yaml": "86f586a6f2790fd4",
}
"""What names an expert in the runs that exist: the digest of what a stage's key is made from."""


def named(found: Recipe) -> str:
    """The digest of all that a stage's key holds of a recipe's experts."""
    experts = {
        name: expert.model_dump(mode="json", exclude={"keywords", "train", "data"})
        for name, expert in found.experts.items()
    }
    return digest(experts)[:16]


@pytest.mark.parametrize("what", EXPERTS)
def test_an_expert_is_named_as_in_runs_that_exist(what: str) -> None:
    assert named(recipe(one=EXPERTS[what])) == STORED[what]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_experts_of_a_shipped_recipe_are_named_as_in_runs_that_exist(path: Path) -> None:
    written = document.load(path.read_text(encoding="utf-8")).value
    assert named(Recipe.model_validate(written)) == STORED[path.name]
