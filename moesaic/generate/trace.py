"""The routing trace: a JSON Lines file of a mixture's decisions, one row for each prompt that it answered.

    {"time": "2026-01-31T12:00:00.123+00:00", "prompt_sha256": "…", "tokens": 7, "probabilities": {"math": 0.9, …},
     "weights": {"math": 1.0, …}, "chosen": "math", "forced": false, "mixture": "0123456789ab", "correction": null,
     "raw": false, "id": "dec_…"}

With texts, `prompt` or (for a conversation) `messages` replaces `prompt_sha256`. `probabilities` is null if the router
abstained, or if a caller named the expert (`forced`). `raw`: the text was read without the base's chat template; the
first traces do not say it and mean false; they have no `id` either. `correction` is the expert that should have
answered, or "base", where somebody has edited it into the row while no mixture writes to the file.

A server adds the `reason` of the decision. What is known later is appended as a row of its own, by the `id` of the
decision; the last one counts:

    {"time": "…", "of": "dec_…", "tokens_made": 12, "finish": "aborted"}
    {"time": "…", "of": "dec_…", "correction": "code"}

Knows nothing about models, nor about readers of the file.
"""

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from moesaic.data.rows import messages_of
from moesaic.errors import DataError, MoesaicError, NonFiniteError, RecipeError, nearest
from moesaic.files import JsonlWriter, read_jsonl
from moesaic.generate.request import BASE, Prompt
from moesaic.model.features import Prompts
from moesaic.routing import Routing
from moesaic.sections.names import validate_name
from moesaic.tokenizer import Conversation
from moesaic.tokenizer.conversation import plain

WRITTEN_BY = "`moesaic generate --trace` writes routing traces"
EXCESS = 1e-2  # distance of a sum of shares from 1, in bfloat16 at worst


@dataclass(frozen=True)
class Decision:
    """A row of a trace: the decision about one prompt, which exactly one of the fields PROMPTS identifies.

    Rows of a server also have a `reason`, and once the answer has ended `tokens_made` and `finish`.
    """

    time: datetime
    prompt: str | None
    messages: Conversation | None
    prompt_sha256: str | None
    tokens: int
    probabilities: dict[str, float] | None
    weights: dict[str, float]
    chosen: str
    forced: bool
    mixture: str
    correction: str | None = None
    raw: bool = False
    id: str | None = None
    reason: str | None = None
    tokens_made: int | None = None
    finish: str | None = None

    @property
    def asked(self) -> str | Conversation | None:
        """The caller's prompt; None if only its hash was recorded."""
        return self.prompt if self.messages is None else self.messages

    @property
    def text(self) -> str | None:
        """The prompt as plain text; None if only its hash was recorded."""
        return self.prompt if self.messages is None else plain(self.messages)

    @property
    def confidence(self) -> float | None:
        """The probability of the chosen expert; None if the router chose no expert."""
        return None if self.probabilities is None or self.chosen == BASE else self.probabilities[self.chosen]


OUTCOME = ("tokens_made", "finish")
SERVED = ("id", "reason")
KEYS = tuple(field.name for field in fields(Decision) if field.name not in OUTCOME)
LATER = (("time", "of", *OUTCOME), ("time", "of", "correction"))  # the keys of rows about an earlier row
PROMPTS = ("prompt", "messages", "prompt_sha256")
START = b'{"time": "'  # of every row as it is written


class Trace:
    """Appends the decisions of one mixture to a file, each before its answer.

    `names`: the experts, in the router's order. `mixture`: 12 hex digits that identify the mixture. `texts`: write
    prompts; otherwise only their SHA-256, which hides prompts that cannot be guessed. `latest`: the id of the latest
    row of this object. Several processes may write to one file. Raises DataError for another kind of file, and leaves
    it unchanged.
    """

    def __init__(self, path: Path, names: tuple[str, ...], mixture: str, texts: bool = False):
        refuse_another_kind(path)
        for name in names:
            validate_name(name, "an expert")  # as readers of the trace do
        self.names, self.mixture, self.texts = names, mixture, texts
        self.log = JsonlWriter(path)
        self.latest: str | None = None

    def record(
        self,
        asked: Sequence[Prompt],
        prompts: Prompts,
        routing: Routing,
        forced: bool,
        raw: bool = False,
        id: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Append a row for each prompt as `asked` by the caller.

        `forced`: the router did not decide. `raw`: texts were read as they are. `id` and `reason`: of a server's
        decision about a single prompt; other rows get an id here.
        """
        time, shares = datetime.now(UTC), routing.probabilities
        if not shares.isfinite().all():
            raise NonFiniteError("the router's probabilities are not finite", field="probabilities")
        columns = (prompts.texts, prompts.lengths, shares, routing.weights, routing.best)
        some = (column if isinstance(column, list) else column.tolist() for column in columns)
        for given, text, tokens, share, weights, best in zip(asked, *some, strict=True):
            talk = given if isinstance(given, tuple) else None
            typed = given if isinstance(given, str) else text
            decision = Decision(
                time=time,
                prompt=typed if self.texts and talk is None else None,
                messages=talk if self.texts else None,
                prompt_sha256=None if self.texts else hashlib.sha256(typed.encode()).hexdigest(),
                tokens=tokens,
                probabilities=None if forced else dict(zip((*self.names, BASE), share, strict=True)),
                weights=dict(zip(self.names, weights, strict=True)),
                chosen=self.names[best] if best >= 0 else BASE,
                forced=forced,
                mixture=self.mixture,
                raw=raw,
                id=id or new_id(),
                reason=reason,
            )
            self.log.append(row_of(decision))
            self.latest = decision.id

    def ended(self, id: str, tokens_made: int, finish: str) -> None:
        """Append how the answer to an earlier row ended."""
        self._add(id, {"tokens_made": tokens_made, "finish": finish})

    def correct(self, id: str, expert: str | None) -> None:
        """Append the expert that should have answered an earlier row, or "base"; None revokes a correction.

        Raises RecipeError for an unknown expert.
        """
        known = [*self.names, BASE]
        if expert is not None and expert not in known:
            hint = nearest(expert, known)
            raise RecipeError("no such expert", field="expert", expected=" or ".join(known), got=expert, hint=hint)
        self._add(id, {"correction": expert})

    def _add(self, id: str, facts: dict[str, Any]) -> None:
        self.log.append({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "of": id, **facts})

    def close(self) -> None:
        """Sync all rows to disk and close the file."""
        self.log.close()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_id() -> str:
    """An id for a decision."""
    return f"dec_{secrets.token_hex(12)}"


def row_of(decision: Decision) -> dict[str, Any]:
    """A decision as it is written, without what later rows say."""
    row = asdict(decision) | {"time": decision.time.isoformat(timespec="milliseconds")}
    if decision.messages is not None:
        row["messages"] = [message._asdict() for message in decision.messages]
    return {key: row[key] for key in KEYS if key not in (*PROMPTS, *SERVED) or row[key] is not None}


def refuse_another_kind(path: Path) -> None:
    """Raise DataError for a file of something else: opening it to append may cut off its last line."""
    try:
        if not path.is_file() or any(True for _ in started(path)):
            return
    except DataError as error:
        error.at(hint=WRITTEN_BY)
        raise
    with path.open("rb") as file:
        head = file.read(len(START))
    if not START.startswith(head):
        raise DataError("not a routing trace", path=path, line=1, hint=WRITTEN_BY)


def started(path: Path) -> Iterator[dict[str, Any]]:
    """The first row of a trace, checked."""
    for line, row in islice(read_jsonl(path), 1):
        with located(path, line):
            (require_later if "of" in row else decision_of)(row)
        yield row


def read_trace(path: Path) -> Iterator[Decision]:
    """The decisions of a trace in order, without an unfinished last line, with what later rows say about them.

    Raises DataError with line and field for a row that is malformed or contradicts itself.
    """
    return (decision for _, decision in numbered(path))


def numbered(path: Path) -> Iterator[tuple[int, Decision]]:
    """The decisions of `read_trace` with the numbers of their lines."""
    later: dict[str, dict[str, Any]] = {}
    for line, row in read_jsonl(path):
        if "of" in row:
            with located(path, line):
                require_later(row)
            later.setdefault(row["of"], {}).update(row)
    for line, row in read_jsonl(path):
        if "of" not in row:
            with located(path, line):
                decision = decision_of(row)
            facts = later.get(decision.id or "", {})
            yield line, replace(decision, **{key: facts[key] for key in (*OUTCOME, "correction") if key in facts})


@contextmanager
def located(path: Path, line: int) -> Iterator[None]:
    """Add the place of a row to errors about it."""
    try:
        yield
    except DataError as error:
        error.at(path=path, line=line)
        raise


def require_later(row: dict[str, Any]) -> None:
    """Refuse a malformed row about an earlier row."""
    if tuple(row) not in LATER:
        expected = " or ".join(", ".join(keys) for keys in LATER)
        raise DataError("wrong keys", field="of", expected=expected, got=", ".join(row), hint=WRITTEN_BY)
    made, finish, corrected = row.get("tokens_made", 0), row.get("finish", "-"), row.get("correction")
    for field, holds, expected in (
        ("time", moment(row["time"]) is not None, "ISO 8601 in UTC, as 2026-01-31T12:00:00Z"),
        ("of", isinstance(row["of"], str) and row["of"], "the id of an earlier row"),
        ("tokens_made", type(made) is int and made >= 0, "a count from 0"),
        ("finish", isinstance(finish, str) and finish, "a word"),
        ("correction", corrected is None or isinstance(corrected, str), "null or a name"),
    ):
        if not holds:
            raise DataError("wrong value", field=field, expected=expected, got=repr(row.get(field)))
    if corrected is not None:
        checked("correction", corrected)


def decision_of(row: dict[str, Any]) -> Decision:
    """A row as a value; DataError names a field that is malformed or contradicts others."""
    row = {"raw": False, **dict.fromkeys(SERVED), **row}
    named = next((key for key in PROMPTS if key in row), "prompt")
    expected = [key for key in KEYS if key not in PROMPTS or key == named]
    usual = [key for key in expected if key not in SERVED]
    for key in row:
        if key not in expected:
            hint = f"a row has one of {', '.join(PROMPTS)}" if key in PROMPTS else nearest(key, usual)
            raise DataError("unknown key", field=key if key.isidentifier() else repr(key), hint=hint or WRITTEN_BY)
    for key in expected:
        if key not in row:
            raise DataError("is missing", field=key, hint=WRITTEN_BY)

    def require(field: str, holds: object, expected: str) -> None:
        if not holds:
            raise DataError("wrong value", field=field, expected=expected, got=repr(row[field]))

    if named == "prompt":
        text = row["prompt"]
        require("prompt", isinstance(text, str) and text, "a text that is not empty")
        require("prompt", not re.search("[\ud800-\udfff]", text), "Unicode text")
    elif named == "messages":
        row = {**row, "messages": messages_of(row["messages"])}
        require("messages", row["messages"], "one message or more")
    else:
        require("prompt_sha256", is_hex(row["prompt_sha256"], 64), "64 hexadecimal digits in lower case")
    require("tokens", type(row["tokens"]) is int and row["tokens"] > 0, "a count from 1")
    for field in SERVED:
        require(field, row[field] is None or (isinstance(row[field], str) and row[field]), "a word")
    for field in ("forced", "raw"):
        require(field, isinstance(row[field], bool), "true or false")
    require("mixture", is_hex(row["mixture"], 12), "12 hexadecimal digits in lower case")

    weights, shares, chosen = row["weights"], row["probabilities"], row["chosen"]
    require("weights", is_shares(weights) and weights, "{name: weight from 0 to 1}")
    for name in weights:
        checked("weights", name)
    require("weights", BASE not in weights, f"experts only: {BASE} answers if all weights are 0")
    require("weights", sum(weights.values()) <= 1 + EXCESS, "weights that sum to at most 1")
    if shares is not None:
        require("probabilities", is_shares(shares), "null or {name: probability}")
        experts = shares.keys() - {BASE}
        require("probabilities", experts == weights.keys(), f"those of {', '.join(weights)}, and of {BASE}")
        require("probabilities", abs(sum(shares.values()) - 1) <= EXCESS, "probabilities that sum to 1")
        require("probabilities", not row["forced"], "null, as the router did not decide")
    require("chosen", isinstance(chosen, str), "a name")
    require("chosen", chosen in weights or chosen == BASE, f"{', '.join(weights)} or {BASE}")
    heaviest = max(weights.values())
    fits = weights[chosen] == heaviest > 0 if chosen in weights else heaviest == 0
    require("chosen", fits, "the expert of largest weight, or the base if all are 0")
    if row["correction"] is not None:
        require("correction", isinstance(row["correction"], str), "null or a name")
        checked("correction", row["correction"])
    time = moment(row["time"])
    require("time", time is not None, "ISO 8601 in UTC, as 2026-01-31T12:00:00Z")
    return Decision(**{**dict.fromkeys(PROMPTS), **row, "time": time})


def moment(text: Any) -> datetime | None:
    """A time in UTC from its ISO 8601 text; None for other texts and zones."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time.astimezone(UTC) if time.utcoffset() == timedelta() else None


def checked(field: str, name: str) -> None:
    try:
        validate_name(name, "an expert")
    except MoesaicError as error:
        raise DataError(error.what, field=field, expected=error.expected, got=error.got, hint=error.hint) from error


def is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def is_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(type(x) in (int, float) and 0 <= x <= 1 + EXCESS for x in value.values())


def summary(decisions: Iterable[Decision]) -> dict[str, Any]:
    """Counts and shares of a trace, ready for JSON; a share of no rows is None.

    {rows, forced, texts (rows with their prompt's text), mixtures ({id: rows}), first and last (times), utilisation
    (each expert's share of the rows that the router decided, and the base's if any), abstained (rows), confidence (mean
    over rows where the router chose an expert), corrected (decided rows with a correction), accuracy (share of these
    that agree with it), unknown (corrections to names that no row has weights for)}.
    """
    every = list(decisions)
    decided = [one for one in every if not one.forced]
    corrected = [one for one in decided if one.correction is not None]
    names = list(dict.fromkeys(name for one in every for name in one.weights))
    times = [one.time.isoformat(timespec="milliseconds") for one in every]
    return {
        "rows": len(every),
        "forced": len(every) - len(decided),
        "texts": sum(one.asked is not None for one in every),
        "mixtures": dict(Counter(one.mixture for one in every)),
        "first": min(times, default=None),
        "last": max(times, default=None),
        "utilisation": utilisation([one.chosen for one in decided], names),
        "abstained": sum(one.chosen == BASE for one in decided),
        "confidence": mean([one.confidence for one in decided if one.confidence is not None]),
        "corrected": len(corrected),
        "accuracy": mean([float(one.chosen == one.correction) for one in corrected]),
        "unknown": sorted({one.correction for one in corrected if one.correction} - {*names, BASE}),
    }


def utilisation(chosen: list[str], names: Iterable[str]) -> dict[str, float | None]:
    counts = Counter(chosen)
    known = [*names, *([BASE] if counts[BASE] else [])]
    return {name: counts[name] / len(chosen) if chosen else None for name in known}


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
