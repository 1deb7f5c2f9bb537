"""`generate`: prompts in, continuations and who wrote them out.

Knows nothing about sampling or routing but how to show them.
"""

import json
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from moesaic.cli.printing import harmless, routed, size, stdout
from moesaic.errors import DataError, MoesaicError, clipped
from moesaic.files.plain import LIMIT, decoded_list
from moesaic.generate import Generation
from moesaic.generate.loaded import ClassifyingMixture, Turns, WritingMixture, conversation_of
from moesaic.model.source import Traffic
from moesaic.tokenizer import Conversation

STDIN = "<stdin>"


def answer(
    mixture: WritingMixture | ClassifyingMixture,
    prompts: Sequence[str | Conversation],
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Continue the prompts, all of them at once; those of stdin (`-`) one after the other, as they come in."""
    terminal = stdout().is_terminal and not as_json
    if prompts == ["-"]:
        for number, prompt in lines():
            try:
                made = mixture.generate(prompt, **settings)
            except MoesaicError as error:
                error.at(path=STDIN, line=number)
                raise
            show(made, prompt, as_json)
    elif len(prompts) == 1 and terminal:
        sign(streamed(mixture.stream(prompts[0], **settings)))
    else:
        several: list[str | Turns] = [*prompts]
        for asked, made in zip(prompts, mixture.generate(several, **settings), strict=True):
            show(made, asked, as_json)


def conversation(file: str) -> Conversation:
    """The conversation in a JSON file, a list of {role, content}; of stdin where it is called `-`."""
    path = STDIN if file == "-" else file
    try:
        if file == "-":
            data = sys.stdin.buffer.read(LIMIT + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise DataError("the file is too large", path=path, expected=f"at most {LIMIT:,} bytes")
        return conversation_of(decoded_list(data))
    except OSError as error:
        raise DataError("the file cannot be read", path=path, got=str(error)) from error
    except ValueError as error:
        raise DataError(f"not usable as JSON: {clipped(str(error))}", path=path) from error
    except DataError as error:
        error.at(path=path)
        raise


def lines() -> Iterator[tuple[int, str]]:
    """The lines of stdin that are not blank, with their numbers."""
    if sys.stdin.isatty():
        print("one prompt a line; Ctrl-D ends", file=sys.stderr)
    found = False
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode().strip("\r\n")
        except UnicodeDecodeError:
            raise DataError("not UTF-8", path=STDIN, line=number) from None
        if text.strip():
            found = True
            yield number, text
    if not found:
        raise DataError("no prompt", path=STDIN, hint="give one as an argument, or one a line here")


def streamed(pieces: Generator[str, None, Generation]) -> Generation:
    """Print the pieces as they come; the whole in the end."""
    while True:
        try:
            print(harmless(next(pieces)), end="", flush=True)
        except StopIteration as end:
            print()
            return end.value


def tell(traffic: Traffic) -> None:
    """On stderr: what was fetched to write all that."""
    fetched = f"{traffic.fetches} experts fetched, {size(traffic.bytes)}, {traffic.seconds:.2f} s waited"
    print(f"[{fetched}; {traffic.hits} found in memory]", file=sys.stderr)


def show(made: Generation, prompt: str | Conversation, as_json: bool) -> None:
    """One prompt, of a conversation its last message, and what was made of it."""
    if as_json:
        routing = {"chosen": made.routing.chosen, "weights": made.routing.weights}
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": [one._asdict() for one in prompt]}
        facts = {**asked, "text": made.text, **routing, "finish": made.finish, "tokens": len(made.ids)}
        print(json.dumps(facts, ensure_ascii=False), flush=True)
    else:
        console = stdout()
        last = prompt if isinstance(prompt, str) else prompt[-1].content
        console.print(f"> {clipped(harmless(last))}", style="cyan")
        console.print(harmless(made.text))
        sign(made)
        console.file.flush()


def sign(made: Generation) -> None:
    """Who wrote it, and how it ended."""
    end = "stopped" if made.finish == "stop" else "cut off"
    who = routed(made.routing.chosen, made.routing.weights)
    stdout().print(f"[{who}; {end} after {len(made.ids)} tokens]\n", style="dim")
