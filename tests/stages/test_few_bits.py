"""Property: experts are trained, mixed and judged over a base in 8 bits, and answer over it or over the whole base."""

import pytest
from small_kinds import fill, recipe_in

import moesaic
from moesaic.errors import RecipeError
from moesaic.interop.quantised import PackedLinear


def test_a_run_over_a_base_in_8_bits(tmp_path):
    place = fill(tmp_path)
    small = ("evaluate.controls=[base,average]", "evaluate.samples=0", "base.bits=8")
    recipe = recipe_in(place, "lora", *small)
    found = moesaic.run(recipe, tmp_path / "run")
    assert set(found["controls"]) >= {"base", "average"}
    whole = moesaic.load(tmp_path / "run")
    packed = moesaic.load(tmp_path / "run", bits=8)
    slots = [one for one in packed.engine.mixture.decoder.modules() if isinstance(one, PackedLinear)]
    assert len(slots) == 14 and not any(isinstance(one, PackedLinear) for one in whole.engine.mixture.decoder.modules())
    assert packed.generate("add 3 to 4", max_new_tokens=3).text and whole.generate("add 3 to 4", max_new_tokens=3).text
    with pytest.raises(RecipeError, match="bits: has no meaning here"):
        moesaic.load(tmp_path / "run", bits=8, ram="2GB")
    with pytest.raises(RecipeError, match="bits: unknown number; expected 8 or 4"):
        moesaic.load(tmp_path / "run", bits=3)
