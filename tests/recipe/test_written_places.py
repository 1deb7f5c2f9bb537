"""Property: a place is read the same whatever lies on the disk, and means the same wherever it is copied to."""

import os
from pathlib import Path

import pytest

from moesaic.recipe import dump, parse, read
from moesaic.sections import document as plain
from moesaic.sections.places import HubId, hub_id, is_folder, name_at, settled

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("place", "name", "revision"),
    [
        ("google/gemma-3-270m", "google/gemma-3-270m", None),
        ("google/gemma-3-270m@main", "google/gemma-3-270m", "main"),
        (f"a/b@{COMMIT}", "a/b", COMMIT),
        ("a_b/c.d-e@refs/pr/1", "a_b/c.d-e", "refs/pr/1"),
    ],
)
def test_an_id_of_the_hub_is_read(place, name, revision):
    assert hub_id(place) == HubId(name, revision)
    assert hub_id(str(HubId(name, revision))) == HubId(name, revision or "main")


@pytest.mark.parametrize(
    "place",
    ["gemma", "a/b/c", "/a/b", "./a", "../a", "~/a", "a/b@", "a/b@x@y", "a/../b", "a/b@../x", "a/b@x/../y", "a b/c",
     "-a/b", "a/.b", "a/b\n", "shipped:tiny", "", "é/b", "a\\b", "https://a/b"],
)  # fmt: skip
def test_what_is_no_id_is_none(place):
    assert hub_id(place) is None


def test_a_folder_wins_over_an_id_of_the_same_spelling_but_with_a_revision_it_never_does(tmp_path):
    assert settled("a/b", tmp_path) == "a/b@main"
    for name in ("a/b", "a/b@v1", "shipped:tiny"):
        (tmp_path / name).mkdir(parents=True)
    assert is_folder("a/b", tmp_path) and settled("a/b", tmp_path) == str(tmp_path / "a" / "b")
    assert settled("a/b@v1", tmp_path) == "a/b@v1" and settled("shipped:tiny", tmp_path) == "shipped:tiny"
    assert settled("./a/b@v1", tmp_path) == str(tmp_path / "a" / "b@v1")
    assert settled("nowhere", tmp_path) == "nowhere"


@pytest.mark.parametrize(
    ("place", "name"),
    [("some/adapter", "adapter"), ("some/adapter@v1", "adapter"), ("x/experts/math/best", "math"), ("mine", "mine"),
     (Path("some/adapter@v1"), "adapter@v1")],
)  # fmt: skip
def test_what_lies_at_a_place_is_called_by_its_last_word(place, name):
    assert name_at(place) == name


RECIPE = {
    "name": "far",
    "base": {"path": "org/base"},
    "experts": {
        name: {"kind": "lora", "path": place, "examples": "asks.jsonl"}
        for name, place in {"one": "org/one", "two": "org/two@v1", "here": "org/here"}.items()
    },
    "router": {
        "kind": "linear",
        "feature": {"kind": "encoder", "model": "org/encoder"},
        "compare": [{"kind": "centroid", "feature": {"kind": "encoder", "model": "shipped:tiny"}}],
    },
}


def test_a_resolved_recipe_keeps_ids_and_they_stay_ids_wherever_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "org" / "here").mkdir(parents=True)
    recipe = parse(RECIPE, (), tmp_path / "recipe.yaml")
    assert recipe.places == {
        "base.path": "org/base@main",
        "experts.one.path": "org/one@main",
        "experts.two.path": "org/two@v1",
        "experts.here.path": str(tmp_path / "org" / "here"),
        "router.feature.model": "org/encoder@main",
        "router.compare[0].feature.model": "shipped:tiny",
    }
    elsewhere = tmp_path / "elsewhere"
    for name in ("base", "one", "encoder", "base@main"):  # which the ids would mean there, were they not resolved
        (elsewhere / "org" / name).mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (elsewhere / "recipe.yaml").write_text(dump(recipe))
    assert read("recipe.yaml") == parse(plain.load(dump(recipe)).value) == recipe


def test_on_the_command_line_a_folder_is_that_of_who_types(tmp_path, monkeypatch):
    (tmp_path / "org" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "recipes" / "recipe.yaml"
    typed = parse(RECIPE, ["base.path=org/base", "experts.one.path=org/other"], source)
    assert typed.places["base.path"] == os.path.join(tmp_path, "org", "base")
    assert typed.places["experts.one.path"] == "org/other@main"
    assert parse(RECIPE, ["base.path=org/base@main"], source).places["base.path"] == "org/base@main"
