"""The README does what it says: its blocks are run, its tables and its tree are compared with the code.

Knows nothing about prose; a block that is not run is listed here with the reason.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from moesaic import errors
from moesaic.cli import main as cli
from moesaic.data.rows import SHAPES, examples_of
from moesaic.evaluate.verdict import ORDER
from moesaic.kinds import KINDS
from moesaic.recipe import Control
from moesaic.recipe.json_schema import json_schema

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_DATA = "Your own data in three minutes"
TINY = (
    *("base.size=nano", "base.pretrain.steps=4", "train.steps=2", "router.epochs=2"),
    *("evaluate.limit=8", "evaluate.samples=1"),
)

NOT_RUN = {  # how a block begins -> why it is not run here
    "git clone": "needs a network, and a minute or more of both cores",
    ". .venv/bin/activate": "asks the run that `make demo` makes",
    "moesaic adopt": "asks for adapters that a reader has; `adopt` is run in tests/cli/test_adopt_verb.py",
    'import moesaic\n\nmixture = moesaic.load("runs/demo")': "asks the run that `make demo` makes",
}

EXPERT = "the sections of all kinds, together"
SECTIONS = [  # where a section stands in a recipe, and its name in the schema
    ("", "Recipe"),
    ("base.", "ExistingBase"),
    ("base.", "NewBase"),
    ("base.pretrain.", "Pretrain"),
    ("train.", "Train"),
    ("experts.NAME.", EXPERT),
    ("experts.NAME.sweep.", "AdapterSweep"),
    ("experts.NAME.data.", "FileData"),
    ("experts.NAME.data.", "LabelledData"),
    ("experts.NAME.data.", "DemoData"),
    ("SOURCE.", "Source"),
    ("router.", "Router"),
    ("router.feature.", "EncoderFeature"),
    ("router.loss.", "RouterLoss"),
    ("router.exploration.", "Exploration"),
    ("mixture.", "Mixture"),
    ("evaluate.", "Evaluate"),
    ("evaluate.generate.", "Texts"),
]
WITHIN = {  # sections whose keys are all among another's
    "RouterSpec": "Router",
    "Sweep": "AdapterSweep",
    "TrainOverride": "Train",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of the README, and the heading that it stands under."""

    section: str
    language: str
    text: str


def blocks() -> list[Block]:
    found, section = [], ""
    for match in re.finditer(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        section = match[1] or section
        if match[2]:
            found.append(Block(section, match[2], match[3]))
    return found


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose heading line begins so."""
    table = README[README.index(f"\n| {heading} |") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def recipe_table() -> str:
    """Every key of the recipe, as the README tabulates them."""
    sections = schema_sections()
    inherited = sections["Train"]["properties"]
    lines = ["| key | default | what it says |", "|---|---|---|"]
    for place, name in SECTIONS:
        if name == EXPERT:
            lines += expert_rows(place, sections)
            continue
        section = sections[name]
        for key, field in section["properties"].items():
            if name == "Pretrain" and key in inherited:
                continue
            lines.append(row_of(f"`{place}{key}`", key, field, section))
        if name == "Pretrain":
            lines.append(f"| `{place}KEY` | as in `train` | Every key of `train`. |")
    return "\n".join(lines)


def schema_sections() -> dict[str, dict[str, Any]]:
    """Every section of the recipe's JSON schema; of one with a shorthand, the shape that is written out."""
    schema = json_schema()
    sections = schema["$defs"] | {"Recipe": schema}
    return {name: section.get("anyOf", [section])[-1] for name, section in sections.items()}


def expert_rows(place: str, sections: dict[str, dict[str, Any]]) -> list[str]:
    """The keys of experts: one row for the kinds that share a key, which are named unless all do."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for word, kind in KINDS.items():
        section = sections[kind.section.__name__]
        for key, field in section["properties"].items():
            kinds.setdefault((key, row_of("{}", key, field, section)), []).append(word)
    some = {row: "" if len(words) == len(KINDS) else f" ({', '.join(words)})" for row, words in kinds.items()}
    return [row.replace("{}", f"`{place}{key}`{words}", 1) for (key, row), words in some.items()]


def row_of(name: str, key: str, field: dict[str, Any], section: dict[str, Any]) -> str:
    what = " ".join(field["description"].split())  # a table has no line breaks
    return f"| {name} | {default(key, field, section.get('required', []))} | {what} |".replace("||", "| |")


def default(key: str, field: dict[str, Any], required: list[str]) -> str:
    if key in required:
        return "required"
    value = field.get("default")
    if isinstance(value, dict):
        return "below"
    if value is None:
        return "by kind" if key == "feature" else "none"
    return "all seven" if key == "targets" else f"`{json.dumps(value)}`".replace('"', "")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the blocks of `OWN_DATA` print, run one after another in an empty folder, the trainings made tiny."""
    folder, said = tmp_path_factory.mktemp("readme"), {}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in blocks():
        if block.section != OWN_DATA or block.language not in ("shell", "python", "yaml"):
            continue
        if named := re.match(r"# (\S+\.\w+)\n", block.text):
            (folder / named[1]).write_text(block.text, encoding="utf-8")
            continue
        lines = [f"{line} {' '.join(TINY)}" if "moesaic run " in line else line for line in block.text.splitlines()]
        command = ["sh", "-euc"] if block.language == "shell" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, "\n".join(lines)],
            cwd=folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        said[block.language] = done.stdout
    said["folders"] = " ".join(sorted(path.name for path in folder.iterdir()))
    return said


@pytest.mark.slow
def test_your_own_data_runs_as_written(played: dict[str, str]) -> None:
    assert played["shell"].startswith("Use ")
    assert "gap closed" in played["shell"] or "regret" in played["shell"]
    assert all(f"\n{name} " in played["shell"] for name in ("base", "joint_wide", "router <--", "oracle_best"))
    assert "> Please count from 3 to 7." in played["shell"]
    assert "\nrouted to " in played["shell"]
    assert played["python"].splitlines()[-1] in ("sums", "counts", "base")
    assert played["folders"].split() == ["mine", "mine-to-share", "mine.yaml", "rows.py", "runs"]


def test_every_block_is_run_or_listed_with_a_reason() -> None:
    code = [block for block in blocks() if block.language in ("shell", "python", "yaml")]
    elsewhere = [block.text for block in code if block.section != OWN_DATA]
    assert len(elsewhere) == len(NOT_RUN) and len(code) > len(elsewhere)
    assert all(any(text.startswith(start) for text in elsewhere) for start in NOT_RUN)


def test_the_demo_is_what_make_runs() -> None:
    assert "\nmake demo\n" in README and "(recipes/demo.yaml)" in README
    assert "moesaic run recipes/demo.yaml" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_shapes_of_rows_are_those_that_are_read() -> None:
    (block,) = (block for block in blocks() if block.language == "jsonl")
    shown = [json.loads(line) for line in block.text.splitlines()]
    assert all(examples_of(row) for row in shown)
    assert {keys for keys in SHAPES for row in shown if row.keys() >= {*keys}} == set(SHAPES)


def test_every_contender_is_explained() -> None:
    listed = [name.strip("`").partition(":")[0] for name, _ in rows("contender")]
    assert listed == list(ORDER)
    assert {*get_args(Control)} < {*listed}


def test_every_key_of_the_recipe_is_tabulated() -> None:
    table = README.partition("<!-- recipe table -->\n")[2].partition("\n<!-- end of recipe table -->")[0]
    assert table == recipe_table(), "the table as it should be is what `recipe_table()` gives"


def test_no_section_of_the_recipe_is_left_out() -> None:
    sections = schema_sections()
    of_kinds = {kind.section.__name__ for kind in KINDS.values()}
    assert {name for _, name in SECTIONS} - {EXPERT} | of_kinds | {*WITHIN} == {*sections}
    for part, whole in [*WITHIN.items(), ("Train", "Pretrain")]:
        assert {*sections[part]["properties"]} <= {*sections[whole]["properties"]}


def test_the_verbs_are_those_of_the_command_line() -> None:
    told = [re.match(r"`moesaic ([\w-]+)", verb)[1] for verb, _ in rows("verb")]  # type: ignore[index]
    assert told == list(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_the_exit_codes_are_those_of_the_errors() -> None:
    family = [
        error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.MoesaicError)
    ]
    known: dict[int, set[str]] = {0: set(), cli.INTERRUPTED: set(), cli.BROKEN_PIPE: set(), cli.TERMINATED: set()}
    for error in family:
        known.setdefault(error.exit_code, set()).add(error.__name__)  # type: ignore[attr-defined]
    told = {int(code): {*re.findall(r"\w+", names)} for code, names, _ in rows("exit code")}
    assert told == known


def test_the_tree_lists_every_file_of_the_package_and_no_other() -> None:
    house = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    tree = house.partition("\n## The tree\n\n```text\n")[2].partition("```")[0]
    folders: list[str] = []
    told = []
    for line in tree.splitlines():
        indent, name, what = re.fullmatch(r"( *)(\S+) +(\S.*)", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 2]
        place = "".join([*folders, name])
        if (ROOT / place).is_file() or (ROOT / place / "__init__.py").is_file():  # a folder stands for its first file
            told.append(place + ("__init__.py" if name.endswith("/") else ""))
        if name.endswith("/"):
            folders.append(name)
        assert len(what) > 10 and len(line) <= 120, line
    files = (path for path in (ROOT / "moesaic").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert sorted(told) == sorted(path.relative_to(ROOT).as_posix() for path in files)
