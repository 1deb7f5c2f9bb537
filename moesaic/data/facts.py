"""Facts about rows that change what figures mean: labels, texts with two labels, shared prompts, spelled tokens.

Knows nothing about ids, nor where facts are shown.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
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
    found["prompts_in_train_and_test"] = len(prompts(rows["train"]) & prompts(rows["test"]))
    return {fact: value for fact, value in found.items() if value}


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Labels that differ only in case, white space and composition."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[folded(label)].append(label)
    return [some for some in groups.values() if len(some) > 1]


def contradicted(rows: Iterable[Example]) -> int:
    """Count the texts that have more than one label."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels["\0".join(map(folded, row.texts))].add(row.response)
    return sum(len(some) > 1 for some in labels.values())


def prompts(rows: Iterable[Example]) -> set[str]:
    return {folded(row.prompt) for row in rows if row.prompt}


def spelling(examples: Iterable[Example], spelled: Callable[[str], str | None]) -> str | None:
    """A warning about rows that spell special tokens, as rows do that were written with a chat template already.

    `spelled`: the special token that a text spells. None where no row spells one.
    """
    rows = {one.group: one for one in examples}.values()  # the last example of a row has the texts of all
    found = [token for one in rows if (token := spelled(f"{one.prompt}\n{one.response}"))]
    if not found:
        return None
    what = f"{len(found)} of {len(rows)} rows spell special tokens, such as {found[0]}, which are read as text"
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
