"""`generate` and `route`: read prompts, and print continuations and the expert that wrote each, or decisions alone.

Knows nothing about sampling or routing except how to print them.
"""

import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from moesaic.cli.printing import harmless, json_text, routed, shown, size, stdout
from moesaic.data.containers import foreign, not_utf8
from moesaic.errors import CompatibilityError, DataError, MoesaicError, clipped
from moesaic.files.plain import LIMIT, decoded_list
from moesaic.generate import Generation
from moesaic.generate.loaded import ClassifyingMixture, Several, WritingModel, conversation_of
from moesaic.generate.request import BASE, RoutingReport
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
        each_line(lambda prompt: respond(model, prompt, settings, as_json))
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


def decide(
    model: WritingModel | ClassifyingMixture, prompts: Sequence[str | Conversation], raw: bool, as_json: bool
) -> None:
    """Print the router's decision about every prompt; about prompts of stdin (`-`) one by one."""
    if not model.routes:
        hint = "give a mixture; `moesaic generate` asks any model"
        raise CompatibilityError("nothing routes here: this is one model", path=model.folder, hint=hint)
    if prompts == ["-"]:
        each_line(lambda prompt: show_decision(model.route(prompt, raw=raw), prompt, as_json))
        return
    several: Several = [*prompts]
    for given, made in zip(prompts, model.route(several, raw=raw), strict=True):
        show_decision(made, given, as_json)


def each_line(act: Callable[[str], None]) -> None:
    """Act on every prompt of stdin as it comes; an error names its line."""
    for number, prompt in lines():
        try:
            act(prompt)
        except MoesaicError as error:
            error.at(path=STDIN, line=number)
            raise


def wanted(prompts: list[str] | None, messages: str | None) -> list[str | Conversation]:
    """The prompts of a command line; without any, those of stdin (`-`)."""
    return [conversation(messages)] if messages else [*(prompts or ["-"])]


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
        facts = {"text": made.text, **plain(made.routing), "finish": made.finish, "tokens": len(made.ids)}
        print(json_text(asked(prompt) | facts), flush=True)
    else:
        head(prompt)
        stdout().print(harmless(made.text))
        sign(made)


def show_decision(made: RoutingReport, prompt: str | Conversation, as_json: bool) -> None:
    """Print a prompt, or the last message of a conversation, and the router's decision about it."""
    if as_json:
        print(json_text(asked(prompt) | plain(made)), flush=True)
        return
    head(prompt)
    console, shares = stdout(), {name: weight for name, weight in made.weights.items() if weight}
    console.print(decided(made))
    if len(shares) > 1:
        console.print(f"weights: {shown(shares)}", style="dim")
    console.file.flush()


def asked(prompt: str | Conversation) -> dict[str, Any]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": [one._asdict() for one in prompt]}


def plain(made: RoutingReport) -> dict[str, Any]:
    return {"chosen": made.chosen, "weights": made.weights, "probabilities": made.probabilities}


def decided(made: RoutingReport) -> str:
    """Describe a decision of a router, and why the base answers."""
    shares = routed(made.chosen, made.probabilities)
    return f"{shares}: the router abstained" if made.chosen == BASE else shares


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
