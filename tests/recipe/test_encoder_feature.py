"""Property: a router may read an encoder, given as a kind with a folder, which is found from anywhere."""

import pytest

from moesaic.errors import RecipeError
from moesaic.recipe import dump, parse
from moesaic.sections.routers import EncoderFeature
from moesaic.stages.routers import label_of

EXPERT = {"kind": "lora", "path": "x", "examples": "x.jsonl"}


def recipe(tmp_path, feature, *overrides, kind="linear"):
    given = {
        "name": "x",
        "base": {"path": "base"},
        "experts": {"one": EXPERT, "two": EXPERT},
        "router": {"kind": kind, "feature": feature, "compare": [{"kind": "centroid", "feature": feature}]},
    }
    return parse(given, overrides, tmp_path / "recipe.yaml")


def test_the_folder_of_an_encoder_is_relative_to_the_recipe_and_written_out_absolute(tmp_path):
    (tmp_path / "minilm").mkdir()
    made = recipe(tmp_path, {"kind": "encoder", "model": "minilm"})
    assert made.router.feature == EncoderFeature(kind="encoder", model=str(tmp_path / "minilm"))
    assert made.router.compare[0].feature == made.router.feature
    assert made.router.depth is None
    import yaml

    assert parse(yaml.safe_load(dump(made))) == made


def test_a_folder_typed_on_the_command_line_is_relative_to_where_it_is_typed(tmp_path, monkeypatch):
    (tmp_path / "here" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    feature = {"kind": "encoder", "model": "minilm"}
    made = recipe(tmp_path, feature, "router.feature.model=other", "router.compare[0].feature.model=other")
    other = str(tmp_path / "here" / "other")
    assert (made.router.feature.model, made.router.compare[0].feature.model) == (other, other)


def test_a_router_that_reads_an_encoder_is_named_by_that_word(tmp_path):
    made = recipe(tmp_path, {"kind": "encoder", "model": "minilm"})
    assert label_of(made.router.compare[0]) == "centroid-encoder"


@pytest.mark.parametrize(
    ("feature", "kind", "match"),
    [
        ("encoder", "linear", r"router\.feature: unknown feature; .*write {kind: encoder, model: FOLDER}"),
        ({"kind": "encoder"}, "linear", r"router\.feature\.model: missing"),
        ({"kind": "encoder", "model": ""}, "linear", r"router\.feature\.model: wrong value"),
        ({"kind": "encodr", "model": "x"}, "linear", r"router\.feature\.kind: wrong value; .*did you mean 'encoder'"),
        ({"kind": "encoder", "modl": "x"}, "linear", r"router\.feature\.modl: unknown key; did you mean 'model'"),
        ({"kind": "encoder", "model": "x"}, "keyword", r"router\.feature: a keyword router cannot read 'encoder'"),
        (3, "linear", r"router\.feature: wrong value; expected text; got 3"),
    ],
)
def test_what_is_no_feature_is_refused_where_it_stands(feature, kind, match, tmp_path):
    with pytest.raises(RecipeError, match=match):
        recipe(tmp_path, feature, kind=kind)
