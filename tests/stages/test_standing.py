"""What a state remembers of files: how many rows were read, and that none of them moves."""

import json
from pathlib import Path

import pytest

from moesaic.data.splits import load_domain
from moesaic.errors import DataError
from moesaic.recipe import Recipe, parse
from moesaic.sections.sources import FileData
from moesaic.stages.standing import State, content_of, limited, require_appended, require_unchanged

SHARES = {"train": ["a.jsonl", "b.jsonl"], "validation": 0.3, "test": "c.jsonl"}
FILES = {"train": "a.jsonl", "validation": "b.jsonl", "test": "c.jsonl"}


def write(folder: Path, **numbers: range) -> None:
    for name, some in numbers.items():
        rows = [{"prompt": f"row {n}", "response": f"{n}"} for n in some]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_in(folder: Path, data: dict) -> Recipe:
    given = {"name": "x", "base": {"path": "shipped:tiny"}, "router": {"kind": "linear"}}
    return parse({**given, "experts": {"own": {"kind": "lora", "data": data}}}, (), folder / "recipe.yaml")


def domain_of(recipe: Recipe, name: str = "own"):
    data = recipe.experts[name].data
    assert isinstance(data, FileData)
    return load_domain(name, data, recipe.resolve)


@pytest.mark.parametrize("data", [SHARES, FILES], ids=["a share", "a file"])
def test_a_recipe_limited_to_the_rows_that_were_read_reads_the_same_whatever_is_appended(data, tmp_path):
    write(tmp_path, a=range(30), b=range(30, 50), c=range(50, 60))
    recipe = recipe_in(tmp_path, data)
    old = domain_of(recipe)
    write(tmp_path, a=range(30), b=[*range(30, 50), *range(70, 90)], c=[*range(50, 60), *range(90, 95)])
    assert content_of(domain_of(limited(recipe, {"own": old.read}))) == content_of(old)
    new = domain_of(recipe)
    assert content_of(new) != content_of(old)
    require_appended(old, new)


def test_files_that_join_the_end_of_a_list_are_rows_that_were_appended(tmp_path):
    write(tmp_path, a=range(30), b=range(30, 50), c=range(50, 60))
    one, both = (recipe_in(tmp_path, {**SHARES, "train": files}) for files in (["a.jsonl"], SHARES["train"]))
    assert domain_of(limited(both, {"own": domain_of(one).read})) == domain_of(one)


def test_the_same_row_twice_counts_once(tmp_path):
    write(tmp_path, a=[*range(30), 3, 4, 5], b=range(1), c=range(50, 60))
    recipe = recipe_in(tmp_path, {**SHARES, "train": "a.jsonl"})
    old = domain_of(recipe)
    assert old.read == {"train": [30], "test": [10]}
    assert content_of(domain_of(limited(recipe, {"own": old.read}))) == content_of(old)


MOVED = {
    "into test": ({"c": [*range(50, 60), 3]}, "out of train: a.jsonl:4, now in test"),
    "into validation": ({"b": [*range(30, 50), 4]}, "out of train: a.jsonl:5, now in validation"),
    "gone": ({"b": range(31, 50)}, "out of validation: b.jsonl:1, now in another domain's test, or gone"),
}


@pytest.mark.parametrize(("changed", "said"), MOVED.values(), ids=MOVED)
def test_a_row_that_would_move_is_named(changed, said, tmp_path):
    write(tmp_path, a=range(30), b=range(30, 50), c=range(50, 60))
    recipe = recipe_in(tmp_path, FILES)
    old = domain_of(recipe)
    write(tmp_path, **changed)
    with pytest.raises(DataError, match=said):
        require_appended(old, domain_of(recipe))


def test_rows_that_have_changed_are_refused_by_their_domain(tmp_path):
    write(tmp_path, a=range(30), b=range(30, 50), c=range(50, 60))
    old = domain_of(recipe_in(tmp_path, FILES))
    state = State(0, None, {}, {"own": old.read}, {"own": content_of(old)}, {}, {}, None, {})
    require_unchanged({"own": old, "new": old}, state)
    write(tmp_path, a=range(1, 30))
    with pytest.raises(DataError, match="rows of 'own' that were read before have changed or are gone"):
        require_unchanged({"own": domain_of(recipe_in(tmp_path, FILES))}, state)
