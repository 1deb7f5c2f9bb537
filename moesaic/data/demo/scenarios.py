"""The scenarios of conversations, read from `scenarios.yaml`.

Knows nothing about the order of turns: `dialogue` plays the scenarios. The wordings are in the grammar of `phrases`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from moesaic.data.demo.shapes import Exchange
from moesaic.data.demo.tables import members, table

PHRASE = re.compile(r"<([a-z ]+)>")


class Scenario(NamedTuple):
    """A situation: openings of the user, details to settle, the outcome, and further questions.

    `details`: slot -> the assistant's question and the user's answer, unless the opening has the detail. `check`
    repeats the details; advice needs none. `extras`: questions after the outcome, with answers.
    """

    pools: dict[str, Sequence]
    openings: list[str]
    details: dict[str, Exchange]
    done: str
    extras: list[Exchange]
    check: str = ""


class Moves(NamedTuple):
    """Turns that every conversation may contain."""

    ready: str
    yes: str
    correction: str
    doubt: Exchange
    bye: Exchange


class Scenarios(NamedTuple):
    """All scenarios, with common moves and pools."""

    moves: Moves
    pools: dict[str, Sequence]
    scenarios: list[Scenario]


@cache
def read_scenarios() -> Scenarios:
    written = table("scenarios.yaml")
    phrases = written.pop("phrases")
    written = complete(written, phrases)
    scenarios = [Scenario(**scenario | {"pools": pools(scenario["pools"])}) for scenario in written["scenarios"]]
    return Scenarios(Moves(**written["moves"]), pools(written["pools"]), scenarios)


def complete(value: Any, phrases: Mapping[str, str]) -> Any:
    """Expand every `<phrase>` in `value`; a question with an answer becomes an Exchange."""
    match value:
        case str():
            return PHRASE.sub(lambda match: phrases[match[1]], value)
        case list():
            return [complete(part, phrases) for part in value]
        case {"ask": ask, "answer": answer}:
            return Exchange(complete(ask, phrases), complete(answer, phrases))
        case dict():
            return {name: complete(part, phrases) for name, part in value.items()}
    return value


def pools(written: Mapping[str, list | str]) -> dict[str, Sequence]:
    return {slot: members(pool) for slot, pool in written.items()}
