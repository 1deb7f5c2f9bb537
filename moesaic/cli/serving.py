"""`serve`: reads the options of a server, and says where it listens.

Knows nothing about requests: see `moesaic.serve`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesaic.cli.printing import stdout
from moesaic.compose.placement import bytes_of
from moesaic.errors import MoesaicError, RecipeError

KEY = "MOESAIC_API_KEY"
SHORTEST = 16
"""Characters of a key, below which it could be guessed."""


def serving(model: dict[str, Any], limits: dict[str, Any], listening: dict[str, Any]) -> None:
    """Serve until a signal ends it."""
    with extra():
        from moesaic.serve.server import Limits, Listening, Place, Server
    where = Listening(**listening)
    server = Server(Place(**model), Limits(**limits), where)
    catalogue = server.worker.version.catalogue
    stdout().print(f"serving {', '.join(catalogue.ids)} at {server.address}/v1", soft_wrap=True)
    if where.entry.key is None:
        stdout().print("[no API key: programs of this machine may ask it]", markup=False, style="dim")
    stdout().file.flush()
    server.run()


@contextmanager
def extra() -> Iterator[None]:
    """Name the extra where a package of it is missing."""
    try:
        yield
    except ImportError as error:
        hint = "install the extra: pip install 'moesaic[serve]'"
        raise MoesaicError("a server needs more packages", got=f"no {error.name}", hint=hint) from error


def entry_of(api_key_file: Path | None, hosts: list[str], origins: list[str], body: int | None) -> Any:
    """Who may come in: the key of a file, or else of the environment."""
    with extra():
        from moesaic.serve.gate import Entry
    key = os.environ.get(KEY) if api_key_file is None else key_in(api_key_file)
    if key is not None and (len(key) < SHORTEST or not key.isascii() or any(c.isspace() for c in key)):
        expected = f"{SHORTEST} or more ASCII characters without spaces"
        raise RecipeError("not an API key", field="api_key_file", expected=expected, got=f"{len(key)} characters")
    hosts = [host.lower() for host in hosts]
    return Entry(key=key, hosts=tuple(hosts), origins=tuple(origins), body=body or Entry.body)


def key_in(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("the file of the key cannot be read", path=file, got=str(error)) from error


def sized(text: str | None, field: str) -> int | None:
    return None if text is None else bytes_of(text, field)
