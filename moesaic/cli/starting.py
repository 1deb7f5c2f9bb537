"""`init`: writes a recipe to start from, and its rows.

Knows nothing about the keys of recipes.
"""

import os
from pathlib import Path

from moesaic.errors import StorageError
from moesaic.files import disk, write_bytes

START = Path(__file__).parent / "start"
RECIPE = "recipe.yaml"


def start(file: Path) -> list[Path]:
    """Write the recipe to `file` and its rows beside it, and return all paths; nothing that exists is replaced."""
    sources = [path for path in sorted(START.rglob("*")) if path.is_file()]
    targets = {path: file if path.name == RECIPE else file.parent / path.relative_to(START) for path in sources}
    if taken := [target for target in targets.values() if os.path.lexists(target)]:
        raise StorageError("the path already exists", path=taken[0], hint="name another file: moesaic init FILE")
    for source, target in targets.items():
        with disk.errors(target):
            disk.make_all(target.parent)
        write_bytes(target, source.read_bytes())
    return [*targets.values()]
