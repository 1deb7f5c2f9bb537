"""Arguments as people type them: prompts that begin with a dash, verbs that are nearly right, places that are nowhere.

Knows nothing about what the verbs do.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)
"""An option, whose value may hold anything; other words with a dash in front are prompts."""

NEAR = 0.65
"""Similarity of a verb to a typing error of it: "rnu" and "run" have 0.67, "serve" and "merge" 0.6."""

BEHIND = "a prompt that begins with a dash stands behind --"


class Verbs(TyperGroup):
    """The verbs of the command line; suggests only those that are near."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.suggest_commands = bool(args and get_close_matches(args[0], list(self.commands), 1, NEAR))
        return super().resolve_command(ctx, args)


class Prompted(TyperCommand):
    """A verb with prompts: words such as "-5 + 3" or "- milk" are prompts, wherever they stand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        taking = {name for one in self.params if one.param_type_name == "option" for name in valued(one)}
        options, words = sorted_out(args, taking)
        known = {name for one in self.params for name in (*one.opts, *one.secondary_opts)}
        try:
            return super().parse_args(ctx, [*options, "--", *words])
        except typer.TyperException as error:
            if any(one.partition("=")[0] not in known for one in options if one.startswith("-")):
                error.message = f"{error.message.rstrip('.')}; {BEHIND}"
            raise


def valued(option: Any) -> Iterator[str]:
    """The names of an option that takes the next word as its value."""
    if not option.is_flag:
        yield from option.opts


def sorted_out(args: Sequence[str], taking: set[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and the other words in their order; `taking`: options that take the next word."""
    options, words, rest = list[str](), list[str](), iter(args)
    for arg in rest:
        if arg == "--":
            words += rest
        elif OPTION.fullmatch(arg):
            options.append(arg)
            if arg in taking:
                options += [value for value in (next(rest, None),) if value is not None]
        else:
            words.append(arg)
    return options, words


def existing(place: str) -> str:
    """Refuse a place that is nowhere, before torch is imported; the hub is asked later."""
    from moesaic.hub.locate import locate
    from moesaic.sections.places import hub_id, is_folder

    if is_folder(place) or not hub_id(place):
        locate(place)
    return place
