"""Journey: `moesaic recipe-from` and `moesaic recipe --schema` on the command line."""

import json

import yaml


def test_the_config_of_a_gated_pair_is_printed_as_a_recipe(moesaic, tmp_path):
    path = tmp_path / "pair.json"
    path.write_text(json.dumps({"model1_path": "one", "model2_path": "two", "routing_mode": "select_one"}))
    files = [f"--{split}={name}={name}-{split}.jsonl" for split in ("train", "test") for name in ("model1", "model2")]
    code, out, _ = moesaic("recipe-from", path, *files)
    told = yaml.safe_load(out)
    assert code == 0 and out.startswith("# the router is trained when the recipe is run\nname: pair\n")
    assert told["router"]["selection"] == "top_1" and told["experts"]["model2"]["path"] == str(tmp_path / "two")
    code, out, err = moesaic("recipe-from", path, "--train", "model1")
    assert code == 2 and not out and "train: wrong value; expected NAME=FILE" in err


def test_the_schema_of_recipes_is_printed_or_written(moesaic, tmp_path):
    code, out, _ = moesaic("recipe", "--schema")
    told = json.loads(out)
    assert code == 0 and told["additionalProperties"] is False and "experts" in told["properties"]
    path = tmp_path / "recipe.schema.json"
    assert moesaic("recipe", "--schema", path) == (0, "", "")
    assert json.loads(path.read_text()) == told
    code, _, err = moesaic("recipe")
    assert code == 2 and "missing option '--schema'" in err
