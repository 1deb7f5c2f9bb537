"""No hostile name gets further than the place where it enters: recipe, command line, or a manifest on disk."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import moesaic
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.inspect import inspect
from moesaic.artefacts.router import load_router
from moesaic.cli.main import status
from moesaic.compose.mixture import load_mixture
from moesaic.errors import RecipeError, WeightsError
from moesaic.files import MANIFEST, digest, read_json
from moesaic.recipe import RESERVED, parse
from moesaic.sections.names import validate_name

BAD_NAMES = [
    *("", ".", "..", "...", ".hidden", "../x", "..\\x", "/etc", "/", "a/b", "a/../../b", "~", "~root", "-rf", "_x"),
    *("C:\\x", "c:x", "\\\\host\\s", "//host/s", "\\\\?\\C:\\x", "a:stream", "%2e%2e", "%2e%2e%2fx", "a%00b", "$HOME"),
    *("a b", "a ", " a", "a.", "a\n", "a\nb", "a\tb", "a\0b", "a\rb", "\x1b[31m", "a\x7f", "a*", "a?", "a|b", "a;b"),
    *("CON", "con.txt", "Aux", "nul.tar.gz", "PRN", "com1", "lpt9", "LPT1.x", "x" * 97, "x" * 300, "x" * 100_000),
    *("caf\u00e9", "cafe\u0301", "ma\u00df", "\u0131d", "\u212a", "\U0001f600", "a\u202egpj.exe", "a\u200b", "\ufeffa"),
    *("\u0661", "a\u2044b", "\uff0e\uff0e", "a\u2028b", "a\ud800", "<script>", "=1+1", "'a'", "[a]", "{a}", "\u00b2"),
]

RECIPE = {
    "name": "good",
    "base": {"path": "b"},
    "experts": {"one": {"kind": "lora", "data": {"demo": "math"}}},
    "router": {"kind": "keyword"},
}


def shown(name: str) -> str:
    return ascii(name[:20])


every_bad_name = pytest.mark.parametrize("name", BAD_NAMES, ids=shown)


@pytest.fixture
def inside(tmp_path, monkeypatch, capsys):
    """A folder to work in; in the end nothing may stand beside it, and everything said was one plain line."""
    folder = tmp_path / "beside" / "inside"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    yield folder
    assert [*tmp_path.iterdir()] == [folder.parent] and [*folder.parent.iterdir()] == [folder]
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said[-1] == "\n" and said[:-1].isprintable() and len(said) < 1000


def spelled(value) -> str:
    """YAML on one line, all that is not ASCII escaped."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 20).removesuffix("...\n")


def written(folder: Path, **changes) -> str:
    (folder / "recipe.yaml").write_text(spelled(RECIPE | changes))
    return "recipe.yaml"


def test_the_good_names_are_good():
    parse(RECIPE)
    for name in ("a", "A1", "0", "a.b-c_d", "x" * 96, "console", "com10", "lpt", "a..b"):
        assert validate_name(name, "a run") == name


@every_bad_name
def test_a_recipe_cannot_be_called_so(inside, name):
    with pytest.raises(RecipeError) as caught:
        moesaic.read_recipe(written(inside, name=name))
    unwritable = {"\0", "\ud800"} & {*name}  # refused as text, before anyone asks what it is for
    assert (caught.value.field, caught.value.line) == (None if unwritable else "name", 1)
    assert status(["run", "recipe.yaml"]) == 2
    assert [*inside.iterdir()] == [inside / "recipe.yaml"]


@every_bad_name
def test_an_expert_cannot_be_called_so(inside, name):
    with pytest.raises(RecipeError) as caught:
        moesaic.read_recipe(written(inside, experts={name: RECIPE["experts"]["one"]}))
    unwritable = {"\0", "\ud800"} & {*name}
    assert (caught.value.field, caught.value.line) == (None if unwritable else f"experts.{name}", 1)
    assert status(["train-expert", "recipe.yaml"]) == 2
    assert [*inside.iterdir()] == [inside / "recipe.yaml"]


@every_bad_name
def test_no_override_gives_such_a_name(inside, name):
    override = f"name={spelled(name)}"
    with pytest.raises(RecipeError) as caught:
        moesaic.read_recipe(written(inside), [override])
    assert (caught.value.path, caught.value.field) == ("<command line>", "name")
    assert status(["run", "recipe.yaml", override]) == 2
    assert [*inside.iterdir()] == [inside / "recipe.yaml"]


@every_bad_name
def test_no_such_expert_is_trained(inside, name):
    base = {"size": "nano", "pretrain": {"steps": 1}}  # a base that is not there would be told of first
    assert status(["train-expert", written(inside, base=base), "--expert", name, "--out", "runs"]) == 2
    assert {*inside.rglob("*")} <= {inside / "recipe.yaml", *(inside / "runs").rglob("*"), inside / "runs"}
    assert not [*inside.rglob("experts")]


def forge(folder: Path, **changes) -> None:
    """Change a manifest as someone would who knows how its digest is made."""
    manifest = {key: value for key, value in read_json(folder / MANIFEST).items() if key != "digest"} | changes
    text = json.dumps({**manifest, "digest": digest(manifest)})
    (folder / MANIFEST).write_text(text)


def refused(folder: Path, read, field: str) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read(folder)
    assert (caught.value.path, caught.value.field) == (folder / MANIFEST, field), str(caught.value)
    return caught.value


@every_bad_name
def test_a_forged_mixture_is_refused_before_any_path_is_built(parts, inside, name, monkeypatch):
    folder = inside / "mixture"
    shutil.copytree(parts.folder / "mixture", folder)
    forge(folder, experts=["one", name])
    monkeypatch.setattr("moesaic.kinds.adapters.load_expert", lambda *_: pytest.fail("a path was built"))
    for read in (load_mixture, moesaic.load, inspect):
        refused(folder, read, "experts[1]")
    assert status(["inspect", "mixture"]) == 4


@every_bad_name
def test_a_forged_router_is_refused(parts, inside, name):
    folder = inside / "router"
    shutil.copytree(parts.folder / "router", folder)
    forge(folder, experts=[name, "two"])
    for read in (load_router, inspect):
        refused(folder, read, "experts[0]")
    assert status(["inspect", "router"]) == 4


def test_an_expert_that_does_lie_elsewhere_is_not_fetched(parts, tmp_path):
    """Without the check this mixture would load: the folder is there, and all its files are in order."""
    shutil.copytree(parts.folder / "mixture", tmp_path / "mixture")
    shutil.copytree(parts.folder / "one", tmp_path / "secret")
    forge(tmp_path / "mixture", experts=["../../secret", "two"])
    error = refused(tmp_path / "mixture", load_mixture, "experts[0]")
    assert str(error).startswith(f"{tmp_path / 'mixture' / MANIFEST}: experts[0]: not a name for an expert; expected 1")


@pytest.mark.parametrize(
    ("experts", "field", "says"),
    [
        (["one", "ONE"], "experts[1]", "differs from expert 'one' only in case"),
        (["one", "two", "one"], "experts[2]", "given twice: 'one'"),
        (["one", "Base"], "experts[1]", "a reserved name"),
        (["all"], "experts[0]", "a reserved name"),
        (["one", 2], "experts[1]", "expected text; got 2"),
        (["one", None], "experts[1]", "expected text; got None"),
        ([["one"]], "experts[0]", "expected text; got ['one']"),
        ([], "experts", "expected one name or more; got []"),
        ("one", "experts", "no list of names"),
        ({"one": 1}, "experts", "no list of names"),
        (None, "experts", "no list of names"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("kind", "load"), [("mixture", load_mixture), ("router", load_router)])
def test_what_is_no_list_of_different_names_is_refused(parts, tmp_path, kind, load, experts, field, says):
    shutil.copytree(parts.folder / kind, tmp_path / kind)
    forge(tmp_path / kind, experts=experts)
    for read in (load, inspect):
        assert says in str(refused(tmp_path / kind, read, field))


def test_recipes_and_manifests_keep_the_same_words(tmp_path):
    for word in RESERVED:
        with pytest.raises(RecipeError, match="reserved"):
            parse(RECIPE | {"experts": {word: RECIPE["experts"]["one"]}})
        with pytest.raises(WeightsError, match="reserved"):
            expert_names(tmp_path, {"experts": [word.upper()]})


def test_a_mixtures_own_name_cannot_colour_the_terminal(parts, tmp_path, capsys):
    shutil.copytree(parts.folder / "mixture", tmp_path / "mixture")
    forge(tmp_path / "mixture", name="\x1b[31mred", level="sequence", site="linear")
    assert status(["inspect", str(tmp_path / "mixture")]) == 0
    assert "red" in (out := capsys.readouterr().out) and "\x1b" not in out
