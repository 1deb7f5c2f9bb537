"""Property: the house as a whole: its floors, its names, what it refuses to contain, and documents that tell the truth.

Knows nothing about what any room does.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

import moesaic
from moesaic import stages
from moesaic.config import Feature
from moesaic.errors import MoesaicError
from moesaic.kinds import KINDS, sites
from moesaic.sections.routers import RouterSpec

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moesaic"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

PUBLIC = [
    "ClassifyingMixture",
    "LanguageModel",
    "MoesaicError",
    "Recipe",
    "Sampling",
    "WritingMixture",
    "WritingModel",
    "add_expert",
    "adopt",
    "amend",
    "export",
    "inspect",
    "load",
    "load_model",
    "merge",
    "plan",
    "published_ttlora",
    "read_recipe",
    "run",
    "upcycle",
]
VERBS = [
    *("bench_routing", "compose", "continual", "evaluate", "pretrain", "run", "train_expert", "train_router"),
    "verify_expert",
]

MEANINGLESS = {"utils", "util", "helpers", "helper", "common", "misc", "lib", "stuff"}
UNSAFE = re.compile(
    r"(pickle|cPickle|dill|cloudpickle|shelve|marshal|tarfile|joblib)(\..*)?"  # code, or files outside the folder
    r"|torch\.(load|save|jit\.load)|numpy\.load"
    r"|yaml\.(load|load_all|unsafe_load|unsafe_load_all|full_load|full_load_all|Loader|UnsafeLoader|FullLoader)"
    r"|jinja2\.(Environment|Template)"
    r"|builtins\.(eval|exec)|eval|exec|os\.system"
)
SHORT = 10  # lines of a body that may speak for itself
SLOTS = {"forward"}  # what it does is the slot's to say, and stands at the class


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def called(tree: ast.Module) -> Iterator[str]:
    """Every name that a module uses from elsewhere, written out: `from torch import load as x; x()` is `torch.load`."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                known[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.split(".")[0]
                )
                yield name.name
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                known[name.asname or name.name] = f"{node.module}.{name.name}"
                yield f"{node.module}.{name.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in known or isinstance(node, ast.Name):
                yield known.get(first, first) + dot + rest


def test_the_floors_hold() -> None:
    # A process of its own: the shape checks of the tests change how modules of the package are imported.
    script = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports('pyproject.toml', no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"The floors +KEPT", done.stdout)
    assert "0 broken" in done.stdout


def test_no_file_has_a_name_that_says_nothing() -> None:
    words = {part for name in NAMES for part in re.split(r"[/_.]", name)}
    assert not words & MEANINGLESS


def test_nothing_reads_what_can_run_code() -> None:
    assert not {(str(path), name) for path in FILES for name in called(tree_of(path)) if UNSAFE.fullmatch(name)}
    assert not [str(path) for path in FILES if "torch.load" in path.read_text(encoding="utf-8")], "nor advises it"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from torch import load as read\nread()", "torch.load"),
        ("import torch as t\nt.load(1)", "torch.load"),
        ("import yaml\nyaml.load(1, Loader=yaml.Loader)", "yaml.load"),
        ("import numpy as np\nnp.load(1)", "numpy.load"),
        ("eval('1')", "eval"),
    ],
)
def test_the_search_for_it_finds_it_under_any_name(source: str, name: str) -> None:
    assert name in {found for found in called(ast.parse(source)) if UNSAFE.fullmatch(found)}


def test_the_search_for_it_knows_what_is_harmless() -> None:
    harmless = (
        "import yaml\nfrom moesaic.sections import document as d\nyaml.safe_load(1)\nd.load(1)\nmodel.eval()\nload()"
    )
    assert not {found for found in called(ast.parse(harmless)) if UNSAFE.fullmatch(found)}


CHANGES_DISK = {"write_bytes", "write_text", "mkdir", "makedirs", "touch", "unlink", "rmdir", "rmtree", "symlink_to"}
CHANGES_DISK |= {
    "copyfile",
    "copytree",
    "copy2",
    "move",
    "chmod",
    "truncate",
    "NamedTemporaryFile",
    "mkstemp",
    "mkdtemp",
}


def written(tree: ast.Module) -> Iterator[str]:
    """Every call of a module that would change the disk, but those of `moesaic.files`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        modes = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        opened = name.endswith("open") and any(re.fullmatch(r"[rbt]*[wax+][rwbt+]*", str(mode)) for mode in modes)
        if opened or (name.rpartition(".")[2] in CHANGES_DISK and not name.startswith(("disk.", "files."))):
            yield name


def test_only_the_room_of_files_changes_the_disk() -> None:
    """Where every call can be broken on purpose, and where what is written is synced, hashed and published."""
    outside = [path for path in FILES if PACKAGE / "files" not in path.parents]
    imported = re.compile(r"write_bytes|truncate")  # functions of files, used without its name
    found = {(str(path), name) for path in outside for name in written(tree_of(path)) if not imported.fullmatch(name)}
    assert not found


@pytest.mark.parametrize(
    "source", ["open('file', 'w')", "path.open(mode='r+b')", "path.write_text('x')", "os.mkdir('x')"]
)
def test_the_search_for_writing_finds_it(source: str) -> None:
    assert list(written(ast.parse(source)))
    assert not list(written(ast.parse("open('file'); open('file', 'rb'); disk.unlink(path); files.copy(a, b)")))


def test_every_file_says_what_it_is() -> None:
    """In one sentence where it only gathers the names of a room; elsewhere also what it does not know."""
    assert not [str(path) for path in FILES if sentences(path) < (1 if gathers(path) else 2)]


def sentences(path: Path) -> int:
    """How many sentences a file begins with."""
    text = " ".join((ast.get_docstring(tree_of(path)) or "").split())
    return len(re.findall(r"[.:;`)](?= |$)", text))


def gathers(path: Path) -> bool:
    """Whether a file is an `__init__` that defines nothing itself, but for the lazy names of the package."""
    defined = [node for node in tree_of(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return path.name == "__init__.py" and all(node.name == "__getattr__" for node in defined)


def test_what_is_public_and_not_short_says_what_it_is_for() -> None:
    silent = [
        f"{path}: {name}"
        for path in FILES
        for name, node in public(tree_of(path))
        if not ast.get_docstring(node) and not speaks(node)
    ]
    assert not silent


def public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Classes, functions and methods, those with a leading underscore left out."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                inner = (part for part in node.body if isinstance(part, ast.FunctionDef))
                yield from ((f"{node.name}.{part.name}", part) for part in inner if not part.name.startswith("_"))


def speaks(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether a function needs no docstring: it fills a slot, or is short enough to be read instead."""
    if isinstance(node, ast.ClassDef):
        return False
    return node.name in SLOTS or (node.end_lineno or 0) - node.body[0].lineno < SHORT


def test_the_public_names_are_these_and_all_are_there() -> None:
    assert moesaic.__all__ == PUBLIC
    assert stages.__all__ == VERBS
    assert all(getattr(moesaic, name).__doc__ for name in PUBLIC)
    assert all(getattr(stages, name).__doc__ for name in VERBS)


@pytest.mark.parametrize("start", ["text", "embedding", "hidden", "hidden@0", "hidden@1", "hidden@23", "hidden@", "x"])
@pytest.mark.parametrize("end", ["", "_mean", "_last", "_tokens", "_max", "@1"])
def test_the_recipe_takes_the_features_that_the_model_reads(start: str, end: str) -> None:
    feature = start + end
    kind = "keyword" if feature == "text" else "attention" if end == "_tokens" else "linear"

    def takes(read: Callable[[], object]) -> bool:
        try:
            read()
        except (MoesaicError, ValidationError):
            return False
        return True

    assert takes(lambda: RouterSpec(kind=kind, feature=feature)) == takes(lambda: Feature.parse(feature))  # type: ignore[arg-type]


def test_every_test_file_mirrors_a_file_or_says_which_journey_or_property_it_tests() -> None:
    """tests/ROOM/test_NAME.py tests moesaic/ROOM/NAME; a file of another name begins with one of the two words."""
    unknown = [
        str(path)
        for path in (ROOT / "tests").rglob("test_*.py")
        if not mirrors(path) and not (ast.get_docstring(tree_of(path)) or "").startswith(("Journey: ", "Property: "))
    ]
    assert not unknown


def mirrors(path: Path) -> bool:
    """Whether a file or a folder of the package has the name of a test file, in the same room."""
    twin = PACKAGE / path.relative_to(ROOT / "tests").with_name(path.stem.removeprefix("test_"))
    return twin.with_suffix(".py").is_file() or twin.is_dir()


def texts() -> Iterator[tuple[str, str]]:
    """The files of the repository that are text, and what they say."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            yield name, (ROOT / name).read_bytes().decode(errors="replace")


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    machine = re.compile(
        r"(?<![\w./<~])/(?:" + "|".join(["work", "home", "root", "tmp", "Users"]) + r")(?:/|\b(?![\w<-]))"
    )
    found = [f"{name}: {match[0]}" for name, text in texts() for match in machine.finditer(text)]
    assert not found


def test_the_documents_name_tests_files_and_links_that_are_there() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        missing = [name for name in re.findall(r"\btest_\w+\b(?!\.py|/)", text) if f"def {name}(" not in tests]
        assert not missing, path
        linked = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (path.parent / link).exists()]
        assert not linked, path
        named = re.findall(r"`(?:moesaic|tests|recipes|docs|benchmarks)/[\w./-]+`", text)
        assert not [name for name in named if not (ROOT / name.strip("`")).exists()], path


# --- questions of type: what a thing is, is asked where it is decided, and nowhere else

QUESTIONS = {  # file of the package -> how often it asks, and why it may
    "generate/loaded.py": (1, "users give messages as mappings or as values"),
    "generate/request.py": (1, "users give a sampling of another type"),
    "kinds/adapters.py": (1, "a head has no effect beside rows without labels"),
    "kinds/compatibility.py": (1, "an encoder's config is compared as it is, a decoder's by its meaning"),
    "model/deciding.py": (1, "a router made from weights brings the directions that it looks for"),
    "recipe/by_kind.py": (1, "a section that was checked before is not checked again"),
    "recipe/problems.py": (1, "an annotation of the recipe's own, met while types are searched"),
    "recipe/schema.py": (1, "the one place that finds out whether rows have labels"),
    "report/reading.py": (1, "an error of the package says more than one of Python's"),
    "sections/expert.py": (1, "the definition of `labelled`"),
    "sections/routers.py": (1, "a feature is a word or a section"),
    "sections/sources.py": (1, "a source is a path or a section"),
}


def questions(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Tests for the package's own types, comparisons of a kind or a site, and reads of `labelled`."""
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Compare | ast.Attribute | ast.match_case) else ""
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            asked = {leaf.id for leaf in ast.walk(node.args[1]) if isinstance(leaf, ast.Name)}
            asked |= {leaf.attr for leaf in ast.walk(node.args[1]) if isinstance(leaf, ast.Attribute)}
            if asked & own:
                yield text
        elif isinstance(node, ast.match_case) and isinstance(node.pattern, ast.MatchClass):
            if ast.unparse(node.pattern.cls) in own:
                yield text
        elif isinstance(node, ast.Compare):
            words = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
            kinds = {kind.word for kind in KINDS.values()} - {"linear"}
            of_kind = re.search(r"\b(kind|site|adapter)\b", text) and words & kinds
            if of_kind or (re.search(r"\bsite\b", text) and words & set(sites())):
                yield text
        elif isinstance(node, ast.Attribute) and node.attr == "labelled":
            yield text


def test_few_questions_of_type_kind_or_row_are_asked_each_with_a_reason() -> None:
    """Beside slots in a tree of modules, which cannot be found otherwise (adapters/slots.py), and exit codes (cli/)."""
    trees = {path.relative_to(PACKAGE).as_posix(): tree_of(path) for path in FILES}
    own = {node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found = {name: list(questions(tree, own)) for name, tree in trees.items() if not name.startswith("cli/")}
    counts = {name: len(some) for name, some in found.items() if some}
    assert counts == {name: count for name, (count, _) in QUESTIONS.items()}, {n: s for n, s in found.items() if s}
    assert sum(counts.values()) <= 12


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(x, Decoder)",
        "isinstance(x, (int, model.Decoder))",
        "expert.kind == 'lora'",
        "recipe.site in ('linear', 'ffn')",
        "recipe.labelled",
        "match x:\n    case Decoder():\n        pass",
    ],
)
def test_the_search_for_such_questions_finds_them(source: str) -> None:
    assert list(questions(ast.parse(source), {"Decoder"}))
    assert not list(questions(ast.parse("isinstance(x, int); router.kind == 'linear'; x.kind = 'lora'"), {"Decoder"}))


def test_no_two_test_files_share_a_name():
    """pytest imports a test file by its name alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
