"""`generate`: reads prompts, and prints continuations and the expert that wrote each.

Knows nothing about sampling or routing except how to print them.
"""

import sys
from codecs import BOM_UTF8
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from moesaic.cli.printing import harmless, json_text, routed, size, stdout
from moesaic.data.containers import foreign, not_utf8
from moesaic.errors import DataError, MoesaicError, clipped
from moesaic.files.plain import LIMIT, decoded_list
from moesaic.generate import Generation
from moesaic.generate.loaded import ClassifyingMixture, Several, WritingModel, conversation_of
from moesaic.model.source import Traffic
from moesaic.tokenizer import Conversation

STDIN = "<stdin>"


def answer(
    model: WritingModel | ClassifyingMixture,
    prompts: Sequence[str | Conversation],
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Continue all prompts together; prompts of stdin (`-`) one by one, each answer as it is written."""
    if prompts == ["-"]:
        for number, prompt in lines():
            try:
                respond(model, prompt, settings, as_json)
            except MoesaicError as error:
                error.at(path=STDIN, line=number)
                raise
    elif len(prompts) == 1 and stdout().is_terminal and not as_json:
        sign(streamed(model.stream(prompts[0], **settings)))
    else:
        several: Several = [*prompts]
        for given, made in zip(prompts, model.generate(several, **settings), strict=True):
            show(made, given, as_json)


def respond(model: WritingModel | ClassifyingMixture, prompt: str, settings: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(model.generate(prompt, **settings), prompt, as_json)
        return
    pieces = model.stream(prompt, **settings)
    head(prompt)
    sign(streamed(pieces))


def conversation(file: str) -> Conversation:
    """Read a conversation, a list of {role, content}, from a JSON file or from stdin (`-`)."""
    path = STDIN if file == "-" else file
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as opened:
            data = opened.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise DataError("the file is too large", path=path, expected=f"at most {LIMIT:,} bytes")
        require_text(data)
        return conversation_of(decoded_list(data.removeprefix(BOM_UTF8)))
    except OSError as error:
        raise DataError("the file cannot be read", path=path, got=str(error)) from error
    except ValueError as error:
        raise DataError(f"not usable as JSON: {clipped(str(error))}", path=path) from error
    except DataError as error:
        error.at(path=path)
        raise


def lines() -> Iterator[tuple[int, str]]:
    """Number and text of every line of stdin that is not blank."""
    if sys.stdin.isatty():
        print("type one prompt per line; Ctrl-D ends", file=sys.stderr)
    found = False
    for number, text in read():
        if text.strip():
            found = True
            yield number, text
    if not found:
        raise DataError("no prompt", path=STDIN, hint="give a prompt as an argument, or one per line of stdin")


def read() -> Iterator[tuple[int, str]]:
    """Number and text of every line of stdin, as it comes."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            if number == 1:
                require_text(line)
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise not_utf8(error, line).at(path=STDIN, line=number) from None
        except DataError as error:
            error.at(path=STDIN, line=number)
            raise
        yield number, text


def require_text(start: bytes) -> None:
    """Refuse what begins as UTF-16 or another format, as some shells pipe text, and say how to convert it."""
    if found := foreign(start):
        kind, line = found
        hint = "convert it: " + line.format(path="FILE", other="OTHER")
        raise DataError("not text", expected="UTF-8", got=kind, hint=hint)


def streamed(pieces: Generator[str, None, Generation]) -> Generation:
    """Print pieces as they arrive, and return the whole generation."""
    while True:
        try:
            print(harmless(next(pieces)), end="", flush=True)
        except StopIteration as end:
            print()
            return end.value


def show_traffic(traffic: Traffic) -> None:
    fetched = f"{traffic.fetches} experts fetched, {size(traffic.bytes)}, {traffic.seconds:.2f} s waited"
    print(f"[{fetched}; {traffic.hits} found in memory]", file=sys.stderr)


def show(made: Generation, prompt: str | Conversation, as_json: bool) -> None:
    """Print a prompt, or the last message of a conversation, and its continuation."""
    if as_json:
        decision = made.routing
        routing = {"chosen": decision.chosen, "weights": decision.weights, "probabilities": decision.probabilities}
        given = {"prompt": prompt} if isinstance(prompt, str) else {"messages": [one._asdict() for one in prompt]}
        facts = {**given, "text": made.text, **routing, "finish": made.finish, "tokens": len(made.ids)}
        print(json_text(facts), flush=True)
    else:
        head(prompt)
        stdout().print(harmless(made.text))
        sign(made)


def head(prompt: str | Conversation) -> None:
    last = prompt if isinstance(prompt, str) else prompt[-1].content
    stdout().print(f"> {clipped(harmless(last))}", style="cyan")


def sign(made: Generation) -> None:
    """Print who answered, and why the answer ends."""
    console, who = stdout(), routed(made.routing.chosen, made.routing.probabilities)
    console.print(f"[{who}; {ending(made)}]\n", style="dim")
    console.file.flush()


def ending(made: Generation) -> str:
    how = "finished" if made.finish == "stop" else "stopped at the token limit"
    return f"{how} after {len(made.ids)} tokens"
