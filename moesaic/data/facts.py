"""Facts about rows that change what figures mean: labels, texts with two labels, shared prompts, spelled tokens.

Knows nothing about ids, nor where facts are shown.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import groupby
from typing import Any

from moesaic.data.rows import Example
from moesaic.data.splits import SPLITS, Domain
from moesaic.data.words import folded


def facts_of(domain: Domain) -> dict[str, Any]:
    """The facts of a domain, as plain data; a fact that does not hold is absent."""
    rows = {split: getattr(domain, split) for split in SPLITS}
    found: dict[str, Any] = {}
    if domain.labels:
        found["labels"] = {split: dict(Counter(row.response for row in some)) for split, some in rows.items()}
        found["labels_alike"] = alike(domain.labels)
        found["texts_with_two_labels"] = contradicted(row for some in rows.values() for row in some)
    tested = {*prompts(rows["test"])}
    found["prompts_in_train_and_test"] = len({mark for mark in prompts(rows["train"]) if mark in tested})
    return {fact: value for fact, value in found.items() if value}


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Labels that differ only in case, white space and composition."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[folded(label)].append(label)
    return [some for some in groups.values() if len(some) > 1]


def contradicted(rows: Iterable[Example]) -> int:
    """Count the texts that have more than one label."""
    labels: dict[bytes, str] = {}
    found = set[bytes]()
    for row in rows:
        text = mark_of("\0".join(map(folded, row.texts)))
        if labels.setdefault(text, row.response) != row.response:
            found.add(text)
    return len(found)


def prompts(rows: Iterable[Example]) -> Iterator[bytes]:
    """The marks of prompts; equal prompts may differ in case and white space."""
    return (mark_of(folded(row.prompt)) for row in rows if row.prompt)


def mark_of(text: str) -> bytes:
    """Few bytes in place of a text; no two texts have the same."""
    return blake2b(text.encode(), digest_size=16).digest()


def spelling(examples: Iterable[Example], spelled: Callable[[str], str | None]) -> str | None:
    """A warning about rows that spell special tokens, as rows do that were written with a chat template already.

    The examples of a row follow each other. `spelled`: the special token that a text spells. None where no row spells
    one.
    """
    seen, found, first = set[str](), 0, ""
    for group, some in groupby(examples, lambda one: one.group):
        *_, last = some  # has the texts of all
        if group not in seen and (token := spelled(f"{last.prompt}\n{last.response}")):
            found, first = found + 1, first or token
        seen.add(group)
    if not found:
        return None
    what = f"{found} of {len(seen)} rows spell special tokens, such as {first}, which are read as text"
    return f"{what}: give messages, which the chat template writes"


def told(name: str, facts: dict[str, Any]) -> Iterator[str]:
    """The facts of a domain in sentences, a line each."""
    if labels := facts.get("labels"):
        counts = ", ".join(f"{label!r} {count}" for label, count in labels["train"].items())
        yield f"{name}: labels: {counts} rows in train"
    for some in facts.get("labels_alike", []):
        shown = ", ".join(map(repr, some))
        yield f"{name}: labels that differ only in case or white space: {shown}; one spelling makes them one label"
    if count := facts.get("texts_with_two_labels"):
        yield f"{name}: {count} texts have two labels"
    if count := facts.get("prompts_in_train_and_test"):
        yield f"{name}: {count} test prompts are in train too, with other answers"
