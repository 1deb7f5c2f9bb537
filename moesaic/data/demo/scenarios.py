"""The situations that conversations are drawn from, read from `scenarios.yaml`.

Knows nothing about the order of turns: `dialogue` plays the scenarios. The wordings are in the grammar of `phrases`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from moesaic.data.demo.tables import members, table

PHRASE = re.compile(r"<([a-z ]+)>")


class Exchange(NamedTuple):
    """A question and its answer."""

    ask: str
    answer: str


class Scenario(NamedTuple):
    """One situation: how a user opens it, the details to be settled, the outcome, and what may follow.

    `details` maps a slot to the assistant's question and the user's answer, asked where the opening did not say;
    `check` repeats the details and is left out in small talk; `extras` are questions for afterwards and their answers.
    """

    pools: dict[str, Sequence]
    openings: list[str]
    details: dict[str, Exchange]
    done: str
    extras: list[Exchange]
    check: str = ""
    bye: str = ""


class Moves(NamedTuple):
    """Turns that any conversation may contain, whatever its scenario."""

    ready: str
    yes: str
    correction: str
    doubt: Exchange
    bye: Exchange


class Scenarios(NamedTuple):
    """All scenarios, with the moves and pools that every scenario may use."""

    moves: Moves
    pools: dict[str, Sequence]
    scenarios: list[Scenario]


@cache
def read_scenarios() -> Scenarios:
    """Read the scenarios, their phrases written out."""
    written = table("scenarios.yaml")
    phrases = written.pop("phrases")
    written = complete(written, phrases)
    scenarios = [Scenario(**scenario | {"pools": pools(scenario["pools"])}) for scenario in written["scenarios"]]
    return Scenarios(Moves(**written["moves"]), pools(written["pools"]), scenarios)


def complete(value: Any, phrases: Mapping[str, str]) -> Any:
    """Write out every `<phrase>` in `value`; a mapping of a question and an answer becomes an exchange."""
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
    """The members of every pool."""
    return {slot: members(pool) for slot, pool in written.items()}
