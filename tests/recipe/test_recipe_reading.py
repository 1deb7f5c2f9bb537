"""Property: reading, the command line, and writing what was read."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.recipe import ExistingBase, NewBase, Recipe, dump, parse, read
from moesaic.sections import document as plain
from moesaic.sections.sources import FileData, Source

GOOD = """\
name: four-domains
base: {path: google/gemma-3-270m}
data_root: texts
experts:
  math: {kind: lora, rank: 4, data: {train: math.jsonl, test: [{path: math_test.jsonl, limit: 9}]}}
  no: {kind: lora, targets: [q_proj], data: {demo: math}, train: {steps: 7}}
  qwen2.5: {kind: lora, path: adapter, examples: [a.jsonl, b.jsonl], keywords: [hi]}
router: {kind: mlp, hidden: [32], compare: [{kind: keyword}, {kind: linear, selection: top_k, k: 2}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


def test_shorthands_and_yaml_1_2(file: Path) -> None:
    recipe = read(file, ["train.lr=1e-3"])
    data = recipe.experts["math"].data
    assert isinstance(data, FileData)
    assert data.train == [Source(path="math.jsonl")]
    assert data.test == [Source(path="math_test.jsonl", limit=9)]
    assert list(recipe.experts) == ["math", "no", "qwen2.5"]
    assert recipe.train.lr == 1e-3
    assert recipe.router.compare[0].feature == "text"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("3", 3),
        ("012", 12),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        *((word, word) for word in ["no", "on", "yes", "1_000", "12:30", "2020-01-01", "0x1F", "1e", ".", "9" * 20]),
    ],
)
def test_plain_words(text: str, value: object) -> None:
    assert plain.load(text).value == value
    assert type(plain.load(text).value) is type(value)


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.sampled_from(
    ["no", "1e-3", "1", "true", "null", "~", "", "1.5", "=", "<<", "12:30", "- a", "a: b", "0x1", "a\nb"]
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(trees)
def test_what_is_written_is_read_back(tree: object) -> None:
    assert plain.load(plain.dump(tree)).value == tree


def test_round_trip_from_elsewhere(file: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    recipe = read(file)
    elsewhere = tmp_path / "runs" / "four"
    elsewhere.mkdir(parents=True)
    (elsewhere / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    again = read(elsewhere / "recipe.yaml")
    assert again == recipe
    assert dump(again) == dump(recipe)
    assert again.resolve("math.jsonl") == tmp_path / "texts" / "math.jsonl"
    assert again.experts["qwen2.5"].path == str(tmp_path / "adapter")
    assert again.train_of("no") == recipe.train_of("no")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**63 - 1),
            "train.lr": st.floats(1e-9, 10) | st.lists(st.floats(1e-9, 10), min_size=1, max_size=3, unique=True),
            "train.weight_decay": st.integers(0, 3),
            "router.kind": st.just("mlp"),
            "router.loss.z": st.floats(0, 1),
            "experts.math.keywords": st.lists(words.filter(bool), min_size=1, max_size=3, unique=True),
            "experts.math.train": st.fixed_dictionaries({}, optional={"steps": st.integers(1, 9)}),
            "evaluate.unseen": st.lists(st.sampled_from(["a", "b"]), max_size=2),
            "evaluate.controls": st.just("all") | st.just(["base", "joint"]),
        },
    )
)
def test_any_recipe_survives_writing(file: Path, values: dict[str, object]) -> None:
    recipe = read(file, [f"{key}={plain.dump(value)}" for key, value in values.items()])
    assert parse(plain.load(dump(recipe)).value) == recipe


def test_any_yaml_reader_can_read_a_dump(file: Path) -> None:
    assert yaml.safe_load(dump(read(file)))["experts"]["no"]["targets"] == ["q_proj"]


def test_base_is_an_id_or_a_folder(file: Path, tmp_path: Path) -> None:
    assert read(file).base == ExistingBase(path="google/gemma-3-270m@main")
    (tmp_path / "google" / "gemma-3-270m").mkdir(parents=True)
    assert read(file).base == ExistingBase(path=str(tmp_path / "google" / "gemma-3-270m"))


@pytest.mark.parametrize("root", ["data_root=~/x", "data_root=texts", "data_root=null", "data_root=/abs"])
def test_where_sources_are(file: Path, tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    roots = {"~/x": tmp_path / "home/x", "texts": Path.cwd() / "texts", "null": tmp_path, "/abs": Path("/abs")}
    recipe = read(file, [root])
    assert recipe.resolve("a.jsonl") == roots[root.partition("=")[2]] / "a.jsonl"
    assert read(file).resolve("a.jsonl") == tmp_path / "texts/a.jsonl", "written in the recipe: relative to its folder"
    assert recipe.resolve("/b.jsonl") == Path("/b.jsonl")
    assert recipe.resolve("~/c.jsonl") == tmp_path / "home/c.jsonl"


def at(recipe: Recipe, path: str) -> object:
    return eval(f"recipe.{path}", {"recipe": recipe})


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("name=other", "name", "other"),
        ("experts.math.rank=16", "experts['math'].rank", 16),
        ("experts.qwen2.5.keywords=[a]", "experts['qwen2.5'].keywords", ["a"]),
        ("experts.math.data.test[0].limit=3", "experts['math'].data.test[0].limit", 3),
        ("experts.math.data.test=new.jsonl", "experts['math'].data.test[0].path", "new.jsonl"),
        ("experts.new={kind: lora, data: {demo: math}}", "experts['new'].data.demo", "math"),
        ("train.lr=[1e-3,3e-3]", "train.lr", [1e-3, 3e-3]),
        ("train.warmup=0", "train.warmup", 0.0),
        ("router.compare=[]", "router.compare", []),
        ("router.compare[1].k=1", "router.compare[1].k", 1),
        ("router.hidden=null", "router.hidden", [256]),
        ("router.hidden=", "router.hidden", [256]),
        ("evaluate.joint.steps=3", "evaluate.joint.steps", 3),
        ("router.loss.balance=1e-2", "router.loss.balance", 0.01),
        ("base={size: nano, pretrain: {}}", "base.pretrain.data", "experts"),
    ],
)
def test_overrides(file: Path, override: str, path: str, value: object) -> None:
    assert at(read(file, [override]), path) == value


@pytest.mark.parametrize(
    ("override", "field", "phrase"),
    [
        ("trian.lr=1", "trian", "did you mean 'train'?"),
        ("train.lrr=1", "train.lrr", "did you mean 'lr'?"),
        ("experts.mth.rank=4", "experts.mth", "does not exist; did you mean 'math'?"),
        ("experts.math.rnk=4", "experts.math.rnk", "did you mean 'rank'?"),
        ("experts.math.rank=four", "experts.math.rank", "expected a whole number; got 'four'"),
        ("evaluate.joint.lr=x", "evaluate.joint.lr", "expected a number; got 'x'"),
        ("router.compare=[{kind: mpl}]", "router.compare[0].kind", "did you mean 'mlp'?"),
        ("router.compare[2].k=1", "router.compare[2].k", "expected an index from 0 to 1"),
        ("experts.math.data.train.limit=1", "experts.math.data.train.limit", "expected a section to set it in"),
        ("name=null", "name", "missing"),
        ("router=null", "router", "missing; for example router: {kind: mlp, feature: hidden_mean}"),
        ("name=[", "name", "not YAML"),
        ("router.kind", None, "expected key=value"),
        ("router..kind=mlp", None, "expected names joined by dots"),
        ("router.=mlp", None, "expected key=value"),
        ("=1", None, "expected key=value"),
    ],
)
def test_bad_overrides(file: Path, override: str, field: str | None, phrase: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(file, [override])
    assert str(caught.value).startswith("<command line>: ")
    assert caught.value.line is None
    assert (caught.value.field, phrase in str(caught.value)) == (field, True), str(caught.value)


def test_a_dotted_name_is_the_longest_that_is_there(file: Path) -> None:
    again = "experts.qwen2={kind: lora, data: {demo: math}}"
    recipe = read(file, [again, "experts.qwen2.5.keywords=[five]", "experts.qwen2.rank=2"])
    assert (recipe.experts["qwen2"].rank, recipe.experts["qwen2.5"].keywords) == (2, ["five"])


def test_the_file_is_reported_before_the_command_line(file: Path) -> None:
    file.write_text(GOOD.replace("hidden: [32]", "hiden: [32]"))
    with pytest.raises(RecipeError, match=r"yaml:8: router\.hiden: .* \(and 1 more\)"):
        read(file, ["seed=x"])


def test_an_override_can_make_a_line_of_the_file_wrong(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:8: router\.hidden: has no effect here; a linear router"):
        read(file, ["router.kind=linear"])
    assert read(file, ["router.kind=linear", "router.hidden=null"]).router.kind == "linear"


def test_a_mapping_is_a_recipe_too(file: Path) -> None:
    mapping = yaml.safe_load(GOOD.replace("no:", "'no':"))
    untouched = repr(mapping)
    overrides = ["seed=3", "experts.math.rank=5"]
    assert parse(mapping, overrides, source=file) == read(file, overrides)
    assert repr(mapping) == untouched
    assert parse(mapping).resolve("x") == Path.cwd() / "texts" / "x"


def test_a_wrong_mapping_has_no_line() -> None:
    mapping = plain.load(GOOD).value
    mapping["experts"]["math"]["data"]["tset"] = mapping["experts"]["math"]["data"].pop("test")
    with pytest.raises(RecipeError) as caught:
        parse(mapping)
    error = caught.value
    assert (error.path, error.line, error.field) == (None, None, "experts.math.data.tset")
    assert "did you mean 'test'? (and 1 more)" in str(error)
    with pytest.raises(RecipeError, match=r"^notebook: experts"):
        parse(mapping, source="notebook")
    with pytest.raises(RecipeError, match=r"experts\.math"):
        parse({**mapping, "experts": {"math": {5: 6}}})


def test_an_anchor_is_read_in_every_place(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD.replace("train: {steps: 7}", "train: &t {steps: 7}") + "evaluate: {joint: *t}\n")
    assert read(path, ["evaluate.joint.steps=9"]).train_of("no").steps == 7
    assert read(path).train_of("joint").steps == 7


def test_a_new_base(file: Path) -> None:
    base = read(file, ["base={size: nano, pretrain: {data: [a.jsonl], steps: 3}}"]).base
    assert isinstance(base, NewBase)
    assert (base.vocab_size, base.pretrain.data, base.pretrain.steps) == (512, [Source(path="a.jsonl")], 3)
