"""Is a recipe of the package found by its name from any folder, and a file of the user before it?"""

import pytest

from moesaic.errors import RecipeError
from moesaic.recipe import read
from moesaic.sections.named_recipes import known_recipes, recipe_at


def test_a_name_is_a_recipe_of_the_package_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read("demo").name == "demo" and recipe_at("demo") == known_recipes()["demo"]
    (tmp_path / "demo").write_text("name: mine\n")
    assert recipe_at("demo").absolute() == tmp_path / "demo"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("dmo", "did you mean 'demo'"),
        ("recipes/demo.yaml", "the package has a recipe of this name: demo"),
        ("x", "init"),
    ],
)
def test_what_is_neither_is_refused_with_what_was_probably_meant(tmp_path, monkeypatch, typed, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"{typed}: no such file; expected a file, or .*demo.*{hint}"):
        recipe_at(typed)
