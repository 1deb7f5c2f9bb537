"""Property: every page of benchmarks/results has one command that makes it again, and stamps of where it comes from."""

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.faults import tabulated
from benchmarks.mixtures import COMPARED, command
from benchmarks.page import RECIPES, RESULTS, Options, Page
from benchmarks.pages import PAGES
from moesaic.recipe import read as read_recipe
from moesaic.runs.machine import machine

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


def test_every_page_names_the_command_that_makes_it_again_and_that_command_exists() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md")}
    assert set(pages) <= set(PAGES)
    commands = {name: re.findall(r"Again: `([^`]+)`", text) for name, text in pages.items()}
    assert commands == {name: [f"python -m benchmarks {name}"] for name in pages}


@pytest.mark.parametrize("name", MODULES)
def test_every_name_that_a_benchmark_imports_from_here_exists(name: str) -> None:
    """Without importing transformers or peft, which some of them compare with."""
    tree = ast.parse((ROOT / f"benchmarks/{name}.py").read_text(encoding="utf-8"))
    wanted = [
        (node.module, one.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moesaic")
        for one in node.names
    ]
    missing = [f"{module}.{name}" for module, name in wanted if not has(import_module(module or ""), name)]
    assert not missing


def has(module: ModuleType, name: str) -> bool:
    """Whether `from module import name` finds something: a value, or a module inside it."""
    return hasattr(module, name) or (Path(str(module.__file__)).parent / f"{name}.py").is_file()


@pytest.mark.parametrize(("page", "run"), [(page, run) for page, of in COMPARED.items() for run in of.runs])
def test_every_run_of_a_page_is_a_recipe_that_reads(page: str, run: str) -> None:
    of = COMPARED[page]
    recipe = read_recipe(RECIPES / of.recipe, of.overrides(run, Options(Path("runs"), Path("shared"))))
    small = read_recipe(RECIPES / of.recipe, of.overrides(run, Options(Path("runs"), Path("shared"), quick=True)))
    assert recipe.train.steps > small.train.steps == 2


def test_a_page_is_stamped_once_where_all_its_runs_are_of_one_machine_and_by_run_otherwise() -> None:
    here = machine()
    one = Page("text\n", {"seed 0": here, "seed 1": here}).written("demo")
    assert one.startswith("# demo\n\nAgain: `python -m benchmarks demo`\n\nComputed: ") and one.endswith("\n\ntext\n")
    assert here["processor"] in one and one.count(here["processor"]) == 1
    other = {**here, "processor": "another", "commit": None, "instructions": None}
    lines = Page("text\n", {"seed 0": here, "seed 1": other, "seed 2": None}).stamp().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["- seed 0", "- seed 1", "- seed 2"]
    assert here["processor"] in lines[0] and "another, instructions unknown" in lines[1]
    assert f"moesaic {here['version']}" in lines[1] and "does not record" in lines[2]


def test_the_command_of_a_run_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_SMOLLM2", "/somewhere/smollm2")
    assert command(COMPARED["smollm2"], "smollm2", "seed-0") == (
        "`moesaic run recipes/smollm2.yaml name=smollm2-seed-0 data_root=shared/data base.path=path/to/model`"
    )


def test_disasters_are_tabulated_by_test_with_what_they_print(tmp_path: Path) -> None:
    (tmp_path / "found.xml").write_text(
        """<testsuites><testsuite time="61.5">
        <testcase classname="tests.faults.test_kills" name="test_killed[expert-5]"><system-out>
--------- Captured Out ---------
expert: 5 kills
</system-out></testcase>
        <testcase classname="tests.faults.test_kills" name="test_killed[router-5]"><failure/></testcase>
        </testsuite></testsuites>"""
    )
    from xml.etree import ElementTree

    text = tabulated(ElementTree.parse(tmp_path / "found.xml"))
    assert "| test_kills, test_killed | 1 passed, 1 failure | expert: 5 kills |" in text and text.startswith("62 s")


@pytest.mark.slow
@pytest.mark.parametrize(
    "pages", [("starting", "mixed_rows"), ("demo",), ("gpu",), pytest.param(("serving",), marks=pytest.mark.faults)]
)
def test_pages_are_made_in_small(pages: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", *pages, "--quick", "--runs", str(tmp_path / "runs")]
    made = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    for name in pages:
        assert f"Again: `python -m benchmarks {name}`\n\nComputed: " in (tmp_path / f"{name}.md").read_text()
    for found in tmp_path.glob("runs/*/evaluation.json"):
        made_with = json.loads(found.read_text())["timing"]["machine"]
        assert {"commit", "processor", "instructions", "threads", "date"} <= set(made_with)
