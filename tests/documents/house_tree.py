"""The floors and the tree of the package, as docs/house.md shows them.

Knows nothing about the rest of the page.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moesaic"
LINE = 120
HEAD = 12
"""Characters of a first clause at least: a shorter one is only a heading for the next."""

OTHER_FILES = {
    "": "the names that everybody may use: `run`, `load`, `read_recipe` and the values beside them",
    "py.typed": "says that the package carries its types",
    "adapters/published.json": "the TT-LoRA settings of the publications",
    "cli/start/": "what `moesaic init` writes",
    "cli/start/recipe.yaml": "a commented recipe",
    "cli/start/rows/": "its rows, to be replaced",
    "cli/start/rows/capitals-test.jsonl": "capitals, asked in other words than in training",
    "cli/start/rows/capitals-train.jsonl": "capitals, to learn",
    "cli/start/rows/plurals-test.jsonl": "plurals, asked in other words than in training",
    "cli/start/rows/plurals-train.jsonl": "plurals, to learn",
    "data/demo/cooking.yaml": "instructions for cooking as data",
    "data/demo/modules.yaml": "modules of the standard library that every Python here has",
    "data/demo/problems.yaml": "the questions for sums as data",
    "data/demo/scenarios.yaml": "the conversations as data",
    "data/demo/stories.yaml": "short stories as data",
    "data/demo/tasks.yaml": "small functions as data",
    "data/neutral_text/": "text of no domain, for routers to learn when to abstain; README.md: its licence and rules",
    "data/neutral_text/README.md": "where the text comes from, its licence, its kinds and splits",
    "data/neutral_text/chat.yaml": "conversations as data",
    "data/neutral_text/code.yaml": "programs in many languages as data",
    "data/neutral_text/general.yaml": "questions and requests as data",
    "data/neutral_text/languages.yaml": "sentences in many languages as data",
    "data/neutral_text/noise.yaml": "typing without meaning as data",
    "data/neutral_text/prose.yaml": "news and prose as data",
    "hub/templates/": "model cards as text with slots to fill",
    "hub/templates/mixture.md": "the card of a mixture",
    "hub/templates/model.md": "the card of a plain model",
    "interop/families.json": "the families of decoders: names, defaults, bounds",
    "report/templates/": "the page as HTML and its style",
    "report/templates/comparison.html": "two runs side by side",
    "report/templates/continual.html": "tasks learned one after another",
    "report/templates/macros.html": "what sections share",
    "report/templates/page.html": "the frame: policy, style, title",
    "report/templates/report.html": "one run, section by section",
    "report/templates/style.css": "light, dark, phone and print",
    "report/templates/rounds.html": "the rounds of a day of continuous training",
    "report/templates/trace.html": "a routing trace",
    "shipped/": "models that the package carries; recipes/tiny says how they were made",
    "shipped/tiny/": "2.3 million parameters, trained for an hour and a half on freely licensed text",
    "shipped/tiny/config.json": "its sizes and wiring",
    "shipped/tiny/manifest.json": "what it was made from and what was measured",
    "shipped/tiny/model.safetensors": "its weights",
    "shipped/tiny/tokenizer.json": "its 2,048 tokens",
}
"""Files and folders of the package without a docstring, and what each is."""


def fenced(lines: Iterator[str]) -> str:
    """Lines as a block."""
    return "```text\n" + "".join(lines) + "```"


def tree() -> str:
    """Every file of the package, floor by floor from the ground, with the first clause of its docstring."""
    names = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*")]
    floor = {room: height for height, rooms in enumerate(reversed(floors())) for room in rooms}

    def order(name: str) -> tuple[Any, ...]:
        first, *inside = name.removesuffix("/").split("/")
        room = first.removesuffix(".py")
        last = room in ("shipped", "testing")
        return (last, floor.get(room, -1), first, *((part.count(".") == 0, part) for part in inside))

    folders = [f"{name}/" for name in names if (PACKAGE / name).is_dir() and "__pycache__" not in name]
    files = [name for name in names if (PACKAGE / name).is_file() and "__" not in name]
    lines = [tree_line("moesaic/", "", 0)]
    lines += [
        tree_line(f"{name.rstrip('/').rpartition('/')[2]}{'/' * name.endswith('/')}", name, 1)
        for name in sorted([*folders, *files], key=order)
    ]
    return fenced(f"{line}\n" for line in lines)


def tree_line(shown: str, name: str, depth: int) -> str:
    """A line of the tree."""
    start = f"{'  ' * (depth + name.rstrip('/').count('/'))}{shown}".ljust(25) + " "
    return start + (OTHER_FILES.get(name) or first_clause(docstring(name), LINE - len(start)))


def docstring(name: str) -> str:
    """What a file, or the first file of a folder, says of itself."""
    path = PACKAGE / name / "__init__.py" if (PACKAGE / name).is_dir() else PACKAGE / name
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def first_clause(text: str, room: int) -> str:
    """The first clause of a docstring without its full stop, in so many characters; a name keeps its capitals."""
    sentence = re.split(r"[.?](?=\s|$)", " ".join(text.split()))[0]
    ends = [match.start() for match in re.finditer(r"[:;] ", sentence) if match.start() > HEAD]
    clause = sentence[: min([*ends, len(sentence)])]
    while len(clause) > room and ", " in clause:
        clause = clause.rpartition(", ")[0]
    word = clause.partition(" ")[0]
    return clause[0].lower() + clause[1:] if word[1:] == word[1:].lower() else clause


def floors() -> list[list[str]]:
    """The rooms of every floor, from the roof to the ground; a room that has no files yet is left out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    rooms = [re.findall(r"\w+", layer) for layer in contracts[0]["layers"]]
    return [
        [room for room in some if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()] for some in rooms
    ]


def floor_plan() -> str:
    """The floors as a block, the roof first."""
    return fenced(floor_lines())


def floor_lines() -> Iterator[str]:
    """The floors, a line for each room; one that stands beside the room above begins with a bar."""
    for rooms in floors():
        for place, room in enumerate(rooms):
            start = f"{'| ' if place else ''}{room}".ljust(16) + " "
            name = room if (PACKAGE / room).is_dir() else f"{room}.py"
            yield start + first_clause(docstring(name), LINE - len(start)) + "\n"
