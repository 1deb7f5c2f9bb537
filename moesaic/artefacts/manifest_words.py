"""Words in manifests: choices among known words, and the names of folders inside folders.

Knows nothing about what the words stand for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from moesaic.errors import WeightsError
from moesaic.files import MANIFEST

ENCODER = "encoder"
"""Subfolder of a router's folder for a copy of its encoder, so that the router can be moved."""

Word = TypeVar("Word", bound=str)


def said(folder: Path, manifest: Mapping[str, Any], field: str, known: Sequence[Word]) -> Word:
    """Read one of the known words from a manifest; the first mixtures had no choice and no such key."""
    word = manifest.get(field, known[0])
    if word not in known:
        expected = " or ".join(known)
        raise WeightsError("unknown", path=folder / MANIFEST, field=field, expected=expected, got=str(word))
    return known[known.index(word)]
