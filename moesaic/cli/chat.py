"""`chat`: a conversation in the terminal or through a pipe, with the expert that answered under each answer.

`take` reads lines into actions and knows no model; a `Chat` carries them out. Knows nothing about sampling or routing
except how to print them.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moesaic.cli.generating import STDIN, decided, ending, read
from moesaic.cli.printing import aligned, harmless, stderr, stdout
from moesaic.errors import DataError, MoesaicError, RecipeError, nearest, printable
from moesaic.generate.loaded import WritingModel
from moesaic.generate.request import BASE, Generation, RoutingReport
from moesaic.tokenizer import Conversation, Message

NEW = 512  # tokens of an answer by default
FENCE = "```"
PROMPT, MORE = "> ", ". "

# --- lines -> actions -------------------------------------------------------------------------------------------------


class Action(NamedTuple):
    """What a line asks for: one of COMMANDS, and its argument."""

    command: str
    argument: str = ""


class Pending(NamedTuple):
    """The lines of a message that is not complete yet, and whether they are inside a block."""

    lines: tuple[str, ...] = ()
    fenced: bool = False


NOTHING = Pending()


def take(pending: Pending, line: str) -> tuple[Pending, Action | None]:
    """Read one more line: what is pending then, and the action that the line completes, if any.

    A message ends with its line, unless the line ends in a backslash or a block of ``` is open. A first line of / and a
    word is a command. Raises RecipeError for an unknown one, which names the nearest.
    """
    if not pending.lines and (not line.strip() or is_command(line)):
        return NOTHING, command(line) if line.strip() else None
    fenced = pending.fenced ^ (line.count(FENCE) % 2 == 1)
    goes_on = not fenced and (len(line) - len(line.rstrip("\\"))) % 2 == 1  # of two, the second is escaped
    lines = (*pending.lines, line[:-1] if goes_on else line)
    if fenced or goes_on:
        return Pending(lines, fenced), None
    return NOTHING, Action("say", "\n".join(lines))


def is_command(line: str) -> bool:
    """Tell commands from messages that begin with a slash, as /etc/hosts does."""
    word = line.split(maxsplit=1)[0]
    return line.startswith("/") and word[1:].isalpha()


def command(line: str) -> Action:
    """The command of a line; RecipeError for an unknown one, and for one with too much or too little behind it."""
    word, _, rest = line.partition(" ")
    name, argument = word.strip()[1:], rest.strip()
    if name not in COMMANDS:
        near, hint = nearest(name, list(COMMANDS)), "/help lists the commands, and /say TEXT sends any text"
        raise RecipeError("no such command", field=f"/{name}", hint=" ".join(filter(None, [near, hint])))
    takes = COMMANDS[name].argument
    if argument and not takes:
        raise RecipeError("takes nothing", field=f"/{name}", got=argument)
    if takes and not argument and not takes.startswith("["):
        raise RecipeError("lacks its argument", field=f"/{name}", expected=f"/{name} {takes}")
    return Action(name, argument)


# --- actions -> answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """The last prompt with its conversation, who answered, and whether the caller chose that.

    `id`: of the decision in the trace; None without a trace, and where Ctrl-C came before the decision.
    """

    asked: Conversation
    routing: RoutingReport
    forced: bool
    id: str | None


@dataclass(frozen=True)
class Talk:
    """What was said, the expert that answers instead of the router's choice, and the last answer."""

    history: Conversation = ()
    forced: str | None = None
    last: Answered | None = None


@dataclass(frozen=True)
class Chat:
    """A model to talk to, with the settings of its answers. `patient`: Ctrl-C stops an answer, and not the chat."""

    model: WritingModel
    settings: dict[str, Any]
    patient: bool

    @property
    def experts(self) -> list[str]:
        return [*self.model.names, BASE]

    def do(self, talk: Talk, action: Action) -> Talk:
        """Carry out an action, and return how the talk stands after it. Raises EOFError to leave."""
        return COMMANDS[action.command].act(self, talk, action.argument)

    def say(self, talk: Talk, text: str) -> Talk:
        """Answer a message. A stopped answer stays in the conversation as far as it came."""
        given = (*talk.history, Message("user", text))
        asked = recent(given, self.fits)
        if dropped := len(given) - len(asked):
            note(f"the oldest {dropped} messages were dropped: the context has {self.model.context} tokens")
        before = self.latest
        said, made = self.answer(asked, talk.forced)
        id = self.latest if self.latest != before else None
        routing = made.routing if made else self.decision(asked, talk.forced)
        self.sign(routing, talk.forced is not None, ending(made) if made else "stopped by Ctrl-C")
        history = (*asked, Message("assistant", said)) if said else asked[:-1]
        return replace(talk, history=history, last=Answered(asked, routing, talk.forced is not None, id))

    @property
    def latest(self) -> str | None:
        return self.model.trace.latest if self.model.trace else None

    def fits(self, talk: Conversation) -> bool:
        return self.model.length(talk) + self.settings["max_new_tokens"] <= self.model.context

    def answer(self, asked: Conversation, expert: str | None) -> tuple[str, Generation | None]:
        """Print an answer as it comes: its text, and the whole, or None where Ctrl-C stopped it."""
        said, made = list[str](), None
        try:
            made = printed(self.model.stream(asked, expert=expert, **self.settings), said)
        except KeyboardInterrupt:
            if not self.patient:
                raise
        print(flush=True)
        return "".join(said).strip(), made

    def decision(self, asked: Conversation, forced: str | None) -> RoutingReport:
        return self.model.route(asked) if forced is None else RoutingReport({}, forced)

    def sign(self, routing: RoutingReport, forced: bool, ending: str) -> None:
        """Print who answered, why, and how the answer ended."""
        note(f"{who(routing, forced, self.model.routes)}; {ending}")

    def force(self, talk: Talk, expert: str) -> Talk:
        """Let an expert answer, or again the router's choice."""
        if expert not in self.experts and expert in ("", "off"):
            note("the router decides")
            return replace(talk, forced=None)
        self.require(expert)
        note(f"{expert} answers until /force off")
        return replace(talk, forced=expert)

    def compare(self, talk: Talk, _: str) -> Talk:
        """Let the base and each expert answer the last prompt; the conversation stays as it is."""
        last = self.answered(talk, "compare")
        if not self.model.names:
            raise RecipeError("there are no experts to compare", field="/compare")
        for expert in [BASE, *self.model.names]:
            stdout().print(f"{expert}:", style="bold")
            _, made = self.answer(last.asked, expert)
            if made is None:
                note("stopped by Ctrl-C")
                break
            self.sign(made.routing, True, ending(made))
        return talk

    def wrong(self, talk: Talk, expert: str) -> Talk:
        """Write into the trace which expert should have answered the last prompt."""
        last = self.answered(talk, "wrong")
        if not self.model.routes:
            raise RecipeError("nothing routes here", field="/wrong", hint="a mixture has decisions to correct")
        if last.forced:
            raise RecipeError("the router did not decide", field="/wrong", got=f"{last.routing.chosen}, forced")
        if self.model.trace is None:
            hint = "start the chat with --trace FILE"
            raise RecipeError("no trace to write a correction to", field="/wrong", hint=hint)
        if last.id is None:
            raise RecipeError("stopped before the decision was written", field="/wrong", hint="ask again")
        self.model.trace.correct(last.id, expert)
        text = "" if self.model.trace.texts else "; routers learn it only from a trace with --trace-texts"
        note(f"{last.routing.chosen} should have been {expert}: written to the trace{text}")
        return talk

    def new(self, talk: Talk, _: str) -> Talk:
        note("a new conversation" + (f", with {talk.forced}" if talk.forced else ""))
        return Talk(forced=talk.forced)

    def help(self, talk: Talk, _: str) -> Talk:
        """Print all commands, and how a message has several lines."""
        rows = [(f"/{name} {one.argument}".strip(), one.help) for name, one in COMMANDS.items()]
        console = stderr()
        console.print("\n".join(aligned(rows)))
        console.print(f"experts: {', '.join(self.experts)}")
        console.print("A line that ends in \\ goes on in the next one, and so does a block from ``` to ```.")
        return talk

    def quit(self, talk: Talk, _: str) -> Talk:
        raise EOFError  # as Ctrl-D does

    def answered(self, talk: Talk, command: str) -> Answered:
        if talk.last is None:
            raise RecipeError("nothing was asked yet in this conversation", field=f"/{command}")
        return talk.last

    def require(self, expert: str) -> None:
        if expert not in self.experts:
            known, hint = " or ".join(self.experts), nearest(expert, self.experts)
            raise RecipeError("no such expert", expected=known, got=expert, hint=hint)


@dataclass(frozen=True)
class Command:
    """A command: what stands behind it (in brackets: or nothing), its line of help, and what it does."""

    argument: str
    help: str
    act: Callable[[Chat, Talk, str], Talk]


COMMANDS = {
    "force": Command("[EXPERT]", "Let EXPERT, or base, answer from now on; off or nothing: the router.", Chat.force),
    "compare": Command("", "Answer the last prompt with the base and with each expert.", Chat.compare),
    "wrong": Command("EXPERT", "Write into the trace that EXPERT, or base, should have answered.", Chat.wrong),
    "new": Command("", "Begin a new conversation.", Chat.new),
    "say": Command("TEXT", "Send TEXT, also where it looks like a command.", Chat.say),
    "help": Command("", "Print this list.", Chat.help),
    "quit": Command("", "Leave, as Ctrl-D does. Ctrl-C stops an answer.", Chat.quit),
}


def printed(pieces: Generator[str, None, Generation], said: list[str]) -> Generation:
    """Print pieces as they come, and add them to `said`; returns the whole."""
    with closing(pieces):
        while True:
            try:
                said.append(piece := next(pieces))
            except StopIteration as end:
                return end.value
            print(harmless(piece), end="", flush=True)


def recent(talk: Conversation, fits: Callable[[Conversation], bool]) -> Conversation:
    """The conversation without the oldest turns that it does not fit with; the last message stays in any case."""
    starts = [at for at, message in enumerate(talk) if message.role == "user"]
    return next((talk[at:] for at in starts if fits(talk[at:])), talk[starts[-1] :])


def who(routing: RoutingReport, forced: bool, routes: bool) -> str:
    """Describe who answered, and why."""
    if forced:
        return f"{routing.chosen}, forced"
    return decided(routing) if routes else f"{routing.chosen}: nothing routes here"


def note(text: str) -> None:
    """Print a line that is no answer."""
    sys.stdout.flush()
    stderr().print(f"[{printable(text)}]", style="dim")


# --- loops ------------------------------------------------------------------------------------------------------------


def talk_to(model: WritingModel, settings: dict[str, Any], expert: str | None) -> None:
    """Talk until the input ends. On a terminal, an error or Ctrl-C ends no more than an answer."""
    terminal = sys.stdin.isatty()
    limit = settings["max_new_tokens"]
    limit = max(1, min(NEW, model.context // 2)) if limit is None else limit
    stop = (*settings["stop"], *model.turn_stops)
    chat = Chat(model, {**settings, "max_new_tokens": limit, "stop": stop}, patient=terminal)
    if expert is not None:
        chat.require(expert)
    talk = Talk(forced=expert)
    if terminal:
        on_terminal(chat, talk)
    else:
        through_pipe(chat, talk)


def on_terminal(chat: Chat, talk: Talk) -> None:
    """Answer what a person types, until Ctrl-D or /quit."""
    with suppress(ImportError):  # Windows edits lines itself
        import readline  # noqa: F401 -- gives `input` its editing and history
    note(f"{', '.join(chat.experts)}; /help lists the commands, Ctrl-D leaves")
    pending = NOTHING
    while True:
        try:
            pending, action = take(pending, typed(MORE if pending.lines else PROMPT))
            talk = chat.do(talk, action) if action else talk
        except EOFError:
            return
        except KeyboardInterrupt:
            pending = NOTHING
            print(file=sys.stderr)
        except MoesaicError as error:
            pending = NOTHING
            print(f"error: {error}", file=sys.stderr)


def typed(prompt: str) -> str:
    """A line from the terminal; where stdout is elsewhere, the prompt goes to stderr."""
    try:
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()
    except EOFError:
        print(file=sys.stderr)
        raise
    except UnicodeDecodeError as error:
        raise DataError("not text", expected=error.encoding, got=f"byte {error.object[error.start]:#x}") from None


def through_pipe(chat: Chat, talk: Talk) -> None:
    """Answer every message of stdin, until it ends or says /quit; an error names its line and ends the chat."""
    pending = NOTHING
    for number, line in read():
        try:
            pending, action = take(pending, line)
            talk = chat.do(talk, action) if action else talk
        except EOFError:
            return
        except MoesaicError as error:
            error.at(path=STDIN, line=number)
            raise
    if pending.lines:
        hint = f"close the block with {FENCE}" if pending.fenced else "leave out the last backslash"
        raise DataError("the last message has no end", path=STDIN, hint=hint)
