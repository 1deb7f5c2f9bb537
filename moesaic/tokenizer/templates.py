"""Chat templates of published models: Jinja, tried when it is read, and rendered in a sandbox with a budget.

Knows nothing about token ids. Templates come from the base's own folder, never from a request.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import DataError, WeightsError, clipped
from moesaic.files import disk
from moesaic.files.regular import open_regular
from moesaic.tokenizer.conversation import Conversation, Message
from moesaic.tokenizer.guard import Limits, guarded
from moesaic.tokenizer.outlines import Outline, outline_of, traceable
from moesaic.tokenizer.spellings import Spellings

if TYPE_CHECKING:
    import jinja2

FILE = "chat_template.jinja"
LIMITS = Limits(2, 512)
SIZE = 1 << 18  # characters of a template
MESSAGES, CHARACTERS = 512, 1 << 19
"""The largest conversation that is rendered; a template is tried on one when it is read."""
OUTPUT = 1 << 20  # characters that a template may add to those of the conversation

DAY = datetime(2024, 7, 26)
"""The date for templates that ask for it, the default of Llama 3's: so a conversation has the same ids on any day."""

# Noncharacters of Unicode: one that no message has is put into texts that spell a special token.
MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


@dataclass(frozen=True)
class Template:
    """A chat template. `names`: the special tokens that it may use, such as ("bos_token", "<s>")."""

    source: str
    names: tuple[tuple[str, str], ...] = ()
    path: Path | None = field(default=None, compare=False)

    @cached_property
    def compiled(self) -> "jinja2.Template":
        return _compiled(self.source)

    @cached_property
    def traceable(self) -> bool:
        """True if outlines of conversations can tell whether the template looks into contents."""
        marked = any(mark in self.source for mark in MARKS)
        return not marked and traceable(self.compiled.environment.parse(self.source))

    def outline(self, roles: tuple[str, ...], reply: bool) -> Outline | None:
        """The text around the contents of every conversation of these roles, for `pieces` of many; None if it differs
        with the contents, or the template refuses these roles.
        """
        render = partial(_rendered, self.compiled, reply=reply, names=dict(self.names))
        return outline_of(roles, render) if self.traceable else None

    def pieces(self, conversation: Conversation, reply: bool, special: Spellings) -> list[tuple[str, bool]]:
        """The pieces of a conversation's text, True for the special tokens that the template itself writes.

        With `reply`, the text ends where the assistant's answer begins. A special token spelled by a message is text.
        DataError where the template refuses the conversation, as many do unless user and assistant take turns.
        """
        _require_short(conversation)
        mark = next((mark for mark in MARKS if not any(mark in message.content for message in conversation)), None)
        if mark is None:
            raise DataError("the conversation has all noncharacters of Unicode", field="messages")
        harmless = tuple(Message(role, special.broken(content, mark)) for role, content in conversation)
        try:
            text = _rendered(self.compiled, harmless, reply, dict(self.names))
        except MemoryError:
            raise
        except Exception as error:  # a template's expressions can raise anything
            hint = getattr(error, "hint", "change the order of roles, or leave out system messages")
            what = "the base's chat template does not take this conversation"
            raise DataError(what, field="messages", got=clipped(str(error), 300), hint=hint) from error
        return [(piece if known else piece.replace(mark, ""), known) for piece, known in special.cut(text)]


def fits(conversation: Conversation) -> bool:
    """True if a conversation is within the limits."""
    return len(conversation) <= MESSAGES and _size(conversation) <= CHARACTERS


def _size(conversation: Conversation) -> int:
    return sum([len(message.content) for message in conversation])


def _require_short(conversation: Conversation) -> None:
    if not fits(conversation):
        size = _size(conversation)
        expected, got = f"{MESSAGES} messages of {CHARACTERS:,} characters", f"{len(conversation)} of {size:,}"
        raise DataError("the conversation is too long", field="messages", expected=f"at most {expected}", got=got)


def read_template(folder: Path, config: dict[str, Any], names: tuple[tuple[str, str], ...]) -> Template | None:
    """Read and try the chat template of a folder, from its own file or the configuration; None where there is none.

    Among several, the one named "default". WeightsError for a template that fails or exceeds a limit.
    """
    path, source = folder / FILE, config.get("chat_template")
    if path.is_file():
        with disk.errors(path), open_regular(path) as file:
            source = file.read(4 * SIZE + 1).decode("utf-8", "replace")
    else:
        path = folder / "tokenizer_config.json"
    if isinstance(source, list):
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        if "default" not in named:
            what, got = "no chat template named default", ", ".join(map(str, named))
            raise WeightsError(what, path=path, field="chat_template", got=got)
        source = named["default"]
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > SIZE:
        expected = f"text of at most {SIZE:,} characters"
        raise WeightsError("not a chat template", path=path, field="chat_template", expected=expected)
    template = Template(source, names, path)
    require_bounded(template)
    return template


_bounded: set[tuple[str, tuple[tuple[str, str], ...]]] = set()  # sources and names of templates within LIMITS


def require_bounded(template: Template) -> None:
    """Raise WeightsError for a template that fails, or exceeds LIMITS."""
    if (template.source, template.names) in _bounded:
        return
    try:
        guarded(rehearse, json.dumps([template.source, template.names]).encode(), LIMITS)
    except ValueError as error:
        what = "not a usable chat template"
        raise WeightsError(what, path=template.path, field="chat_template", got=clipped(str(error), 300)) from error
    _bounded.add((template.source, template.names))


def rehearse(given: bytes) -> bytes:
    """Render short conversations, then the largest; only the first two must work. Runs in the guarded process.

    Both must write what is said.
    """
    from moesaic.tokenizer.sandbox import Refusal

    source, names = json.loads(given)
    compiled, known = _compiled(source), dict(names)
    ask, answer = Message("user", "What is 3 + 4?"), Message("assistant", "It is 7.")
    system = Message("system", "Be kind.")
    long = tuple(Message("user" if at % 2 == 0 else "assistant", "a b") for at in range(MESSAGES - 1))
    text = "a\n<b></think> " * (CHARACTERS // 28)
    wide = (Message("user", text), Message("assistant", text), ask)
    for index, conversation in enumerate([(ask,), (ask, answer, ask), (system, ask), long, wide]):
        for reply in (True, False):
            try:
                text = _rendered(compiled, conversation, reply, known)
            except Refusal:
                if index < 2:
                    raise
                continue
            other = tuple(Message(role, f"{content} Or not?") for role, content in conversation)
            if index < 2 and text == _rendered(compiled, other, reply, known):
                raise ValueError("it writes nothing of what the messages say")
    return b""


def _rendered(compiled: "jinja2.Template", conversation: Conversation, reply: bool, names: dict[str, str]) -> str:
    messages = [{"role": role, "content": content} for role, content in conversation]
    nothing: dict[str, Any] = {"tools": None, "documents": None}
    text = compiled.render(messages=messages, add_generation_prompt=reply, **nothing, **names)
    limit = OUTPUT + sum(len(message.content) for message in conversation)
    if len(text) > limit:
        from moesaic.tokenizer.sandbox import Exceeded

        raise Exceeded(f"it writes {len(text):,} characters, more than {limit:,}")
    return text


def _compiled(source: str) -> "jinja2.Template":
    from moesaic.tokenizer import sandbox

    return sandbox.compiled(source, DAY.strftime)
