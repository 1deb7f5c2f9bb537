"""Property: the documents tell the truth: generated regions, links, commands, fragments, tables and figures
are compared.

Knows nothing about prose. What blocks do when they are run is in test_played.py.
"""

import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any, get_args

import pytest
from generate import EXPERT, GENERATED, PAGES, REGION, ROOT, SECTIONS, WITHIN, command, filled, schema_sections
from markdown import Block, all_blocks, anchors, blocks, links, name_of, rows, text_of, units
from test_played import NOT_RUN, PLAYED

from moesaic import errors
from moesaic.cli import main as cli
from moesaic.data.rows import SHAPES, examples_of
from moesaic.evaluate.units import label
from moesaic.evaluate.verdict import ORDER
from moesaic.kinds import KINDS
from moesaic.recipe import Control, parse
from moesaic.sections.document import load
from moesaic.sections.routers import RouterSpec

NAMES = [name_of(page) for page in PAGES]
RESULTS = ROOT / "benchmarks" / "results"
MINIMAL = {
    "name": "fragment",
    "base": {"path": "shipped:tiny"},
    "experts": {"one": {"kind": "lora", "data": {"demo": "math"}}, "two": {"kind": "lora", "data": {"demo": "code"}}},
    "router": {"kind": "mlp", "feature": "hidden_mean"},
}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_generated_regions_are_what_the_code_gives(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == filled(text), "run: python tests/documents/generate.py"


def test_every_region_is_on_a_page() -> None:
    used = {match[2] for name in NAMES for match in REGION.finditer(text_of(name))}
    assert used == {*GENERATED}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert {page.resolve() for page in PAGES} - linked == {(ROOT / "README.md").resolve()}


def test_every_result_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    assert {*RESULTS.glob("*.md")} <= linked


def test_pages_are_of_the_length_they_promise() -> None:
    assert len(text_of("README.md").splitlines()) <= 180
    assert len(text_of("CONTRIBUTING.md").splitlines()) <= 140


# --- blocks and commands ----------------------------------------------------------------------------------------------


def fragments() -> list[Block]:
    """The parts of recipes that pages show."""
    return [block for block in all_blocks() if block.language == "yaml" and not re.match(r"# \S+\.yaml\n", block.text)]


def test_every_block_is_run_or_listed_with_a_reason() -> None:
    code = [block for block in all_blocks() if block.language in ("shell", "python")]
    elsewhere = [block for block in code if block.page not in PLAYED or block.text.startswith(tuple(NOT_RUN))]
    assert all(any(block.text.startswith(start) for start in NOT_RUN) for block in elsewhere), elsewhere
    assert all(any(block.text.startswith(start) for block in elsewhere) for start in NOT_RUN)
    assert len(code) > len(elsewhere)


@pytest.mark.parametrize("block", fragments(), ids=lambda block: block.page)
def test_every_fragment_is_a_part_of_a_recipe(block: Block) -> None:
    parse({**MINIMAL, **load(block.text).value})


def commands() -> list[str]:
    """Every line that begins with `moesaic` in a block, and every such command in the text."""
    in_blocks = [line for block in all_blocks() for line in re.sub(r"\\\n\s*", "", block.text).splitlines()]
    in_text = [
        match for name in NAMES for match in re.findall(r"`(moesaic [a-z][^`]*)`", REGION.sub("", text_of(name)))
    ]
    return [
        line.removeprefix("$ ").strip() for line in [*in_blocks, *in_text] if re.match(r"\s*(\$ )?moesaic [a-z]", line)
    ]


def test_every_command_is_one_that_the_command_line_takes() -> None:
    assert len(commands()) > 30
    for line in commands():
        _, name, *words = shlex.split(line.replace("`", ""))
        if name == "VERB":
            continue
        verb = command().commands[name]
        known = {option for one in verb.params for option in one.opts} | {"--help", "--debug"}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_shown_error_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in blocks("docs/errors.md") if block.language == "console")
    line, said = block.text.splitlines()
    assert cli.status(line.removeprefix("$ moesaic ").split()) == errors.RecipeError.exit_code
    assert capsys.readouterr().err.strip() == said


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_demo_is_what_make_runs() -> None:
    assert "\nmake demo\n" in text_of("README.md") and "(recipes/demo.yaml)" in text_of("README.md")
    assert "moesaic run recipes/demo.yaml" in text_of("Makefile")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_shapes_of_rows_are_those_that_are_read() -> None:
    (block,) = (block for block in blocks("docs/data.md") if block.language == "jsonl")
    shown = [json.loads(line) for line in block.text.splitlines()]
    assert all(examples_of(row) for row in shown)
    assert {keys for keys in SHAPES for row in shown if row.keys() >= {*keys}} == set(SHAPES)


def test_every_contender_is_explained() -> None:
    listed = [name.strip("`").partition(":")[0] for name, _ in rows("docs/evaluation.md", "contender")]
    assert listed == [label(name) for name in ORDER]
    assert {*get_args(Control)} < {*listed}


def test_no_section_of_the_recipe_is_left_out() -> None:
    sections = schema_sections()
    of_kinds = {kind.section.__name__ for kind in KINDS.values()}
    assert {name for _, name in SECTIONS} - {EXPERT} | of_kinds | {*WITHIN} == {*sections}
    for part, whole in [*WITHIN.items(), ("Train", "Pretrain")]:
        assert {*sections[part]["properties"]} <= {*sections[whole]["properties"]}


def test_the_exit_codes_are_those_of_the_errors() -> None:
    family = [
        error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.MoesaicError)
    ]
    known: dict[int, set[str]] = {0: set(), cli.INTERRUPTED: set(), cli.BROKEN_PIPE: set(), cli.TERMINATED: set()}
    known[128 + signal.SIGHUP] = set()
    for error in family:
        known.setdefault(error.exit_code, set()).add(error.__name__)
    told = {int(code): {*re.findall(r"\w+", names)} for code, names, _ in rows("docs/errors.md", "exit code")}
    assert told == known


def test_every_kind_of_expert_and_router_is_explained() -> None:
    routers: Any = RouterSpec.model_fields["kind"].annotation
    assert [kind.strip("`") for kind, _ in rows("docs/routers.md", "`kind`")] == [*get_args(routers)]
    assert re.findall(r"^- `(\w+)`:", text_of("docs/experts.md"), re.MULTILINE)[: len(KINDS)] == [*KINDS]


def test_every_feature_that_is_explained_is_taken() -> None:
    words = [word for cell, _ in rows("docs/routers.md", "`feature`") for word in re.findall(r"`(\w[\w@]*)`", cell)]
    assert len(words) > 8
    for word in words:
        feature = word.replace("K", "1")
        kind = "keyword" if word == "text" else "attention" if word.endswith("_tokens") else "linear"
        RouterSpec(kind=kind, feature=feature)  # type: ignore[arg-type]


def test_the_picture_of_the_floors_names_every_room() -> None:
    picture = text_of("docs/pictures/architecture.svg")
    rooms = {path.parent.name for path in (ROOT / "moesaic").glob("*/__init__.py")} - {"testing"}
    named = {word for text in re.findall(r'font-weight="600">([^<]+)<', picture) for word in re.findall(r"\w+", text)}
    assert rooms <= named


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/diary.md"])
def test_every_figure_beside_a_link_is_on_the_page_that_it_links_to(name: str) -> None:
    for unit in units(name):
        linked = re.findall(r"\(([^()\s]*benchmarks/results/\S+?\.md)\)", unit)
        if linked:
            found = "\n".join(((ROOT / name).parent / link).read_text(encoding="utf-8") for link in linked)
            known = {*re.findall(r"\d+\.\d+", found)}
            assert {*re.findall(r"(?<![\w.])\d+\.\d+(?!\.?\d)", unit)} <= known, unit


def test_the_readme_shows_the_first_seed_of_the_demo() -> None:
    readme, found = text_of("README.md"), (RESULTS / "demo.md").read_text(encoding="utf-8")
    verdict = re.search(r"- seed 0: (.+)", found)
    assert verdict and verdict[1] in " ".join(readme.replace("*", " ").split()).replace(" .", ".")
    (block,) = (block for block in blocks("README.md") if block.text.startswith("contender"))
    heading, _, *lines = (line.split() for line in block.text.splitlines())
    assert len(lines) <= 12 and heading[-4:] == ["code", "dialogue", "math", "prose"]
    for shown, value, *rest in lines:
        contender = "router" if shown == label("router") else shown
        overall = next(line for line in found.splitlines() if line.startswith(f"| {contender} | "))
        first = overall.split(" | ")[1].strip("* ")
        difference = "" if rest[0] == "-" else f" ({' '.join(rest[:3])})"
        assert first == f"{value}{difference}"
        domains = [line for line in found.splitlines() if line.startswith(f"| {contender} | ")][1]
        assert [cell.split(" / ")[0] for cell in domains.strip("| ").split(" | ")[1:]] == rest[-4:]
