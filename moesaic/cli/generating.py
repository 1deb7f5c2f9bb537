"""`generate`: prompts in, continuations and who wrote them out.

Knows nothing about sampling or routing but how to show them.
"""

import json
import sys
from collections.abc import Generator, Iterator
from typing import Any

from moesaic.cli.printing import harmless, routed, stdout
from moesaic.errors import DataError, MoesaicError, clipped
from moesaic.generate import Generation
from moesaic.generate.loaded import LoadedMixture

STDIN = "<stdin>"


def answer(mixture: LoadedMixture, prompts: list[str], settings: dict[str, Any], as_json: bool) -> None:
    """Continue the prompts, all of them at once; those of stdin (`-`) one after the other, as they come in."""
    terminal = stdout().is_terminal and not as_json
    if prompts == ["-"]:
        for number, prompt in lines():
            try:
                made = mixture.generate(prompt, **settings)
            except MoesaicError as error:
                error.path, error.line = STDIN, number
                raise
            show(made, prompt, as_json)
    elif len(prompts) == 1 and terminal:
        sign(streamed(mixture.engine.stream(prompts[0], **settings)))
    else:
        for prompt, made in zip(prompts, mixture.generate(prompts, **settings), strict=True):
            show(made, prompt, as_json)


def lines() -> Iterator[tuple[int, str]]:
    """The lines of stdin that are not blank, with their numbers."""
    if sys.stdin.isatty():
        print("one prompt a line; Ctrl-D ends", file=sys.stderr)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode().strip("\r\n")
        except UnicodeDecodeError:
            raise DataError("not UTF-8", path=STDIN, line=number) from None
        if text.strip():
            yield number, text


def streamed(pieces: Generator[str, None, Generation]) -> Generation:
    """Print the pieces as they come; the whole in the end."""
    while True:
        try:
            print(harmless(next(pieces)), end="", flush=True)
        except StopIteration as end:
            print()
            return end.value


def show(made: Generation, prompt: str, as_json: bool) -> None:
    """One prompt and what was made of it."""
    if as_json:
        routing = {"chosen": made.routing.chosen, "weights": made.routing.weights}
        facts = {"prompt": prompt, "text": made.text, **routing, "finish": made.finish, "tokens": len(made.ids)}
        print(json.dumps(facts, ensure_ascii=False), flush=True)
    else:
        console = stdout()
        console.print(f"> {clipped(harmless(prompt))}", style="cyan")
        console.print(harmless(made.text))
        sign(made)
        console.file.flush()


def sign(made: Generation) -> None:
    """Who wrote it, and how it ended."""
    end = "stopped" if made.finish == "stop" else "cut off"
    who = routed(made.routing.chosen, made.routing.weights)
    stdout().print(f"[{who}; {end} after {len(made.ids)} tokens]\n", style="dim")
