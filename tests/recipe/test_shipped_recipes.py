"""Is every recipe of the repository one, and does it take the folders that it asks for on the command line?"""

from pathlib import Path

import pytest

from moesaic.recipe import ExistingBase, read

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_recipe_of_the_repository_is_read(path):
    assert read(path).experts


def test_the_stories_recipe_stands_on_a_base_and_texts_that_are_given_with_it(tmp_path):
    recipe = read(RECIPES / "stories.yaml", [f"base.path={tmp_path}", f"data_root={tmp_path / 'data'}"])
    assert isinstance(recipe.base, ExistingBase) and recipe.base.path == str(tmp_path)
    assert recipe.data_root == str(tmp_path / "data")
    rates = {name: tuple(recipe.train_of(name).lr) for name in (*recipe.experts, "joint", "joint_wide")}
    assert len(set(rates.values())) == 1, "one grid for every contender"
