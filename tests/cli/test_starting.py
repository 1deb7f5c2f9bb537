"""Does `init` write a recipe that is read, with the rows that it names, and nothing over what is there?"""

import json

from moesaic.cli.starting import START
from moesaic.recipe import read


def test_the_recipe_is_read_and_its_rows_are_there(moesaic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = moesaic("init", "own/mine.yaml")
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert code == 0 and sorted(out.splitlines()[:-1]) == written and out.endswith("Next: moesaic run own/mine.yaml\n")
    assert {path.name for path in START.rglob("*.*")} == {"recipe.yaml", *(name.split("/")[-1] for name in written[1:])}
    recipe = read("own/mine.yaml")
    assert recipe.base.place == "shipped:tiny"
    for expert in recipe.experts.values():
        for source in (*expert.data.train, *expert.data.test):
            rows = [json.loads(line) for line in (tmp_path / "own" / source.path).read_text().splitlines()]
            assert rows and all(row.keys() == {"prompt", "response"} for row in rows)


def test_no_prompt_of_a_test_file_is_learned():
    for test in START.glob("rows/*-test.jsonl"):
        learned = test.with_name(test.name.replace("-test", "-train")).read_text().splitlines()
        assert not {*test.read_text().splitlines()} & {*learned}


def test_nothing_is_replaced(moesaic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("mine")
    code, _, err = moesaic("init")
    assert code == 6 and "recipe.yaml: the path already exists" in err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
