"""Encoding conversations for training, against the batch call of `tokenizers` on texts that are rendered already.

Over the tokenizer and chat template of SmolLM2, on sgd_dialogues: every answer of a conversation is a row.
"""

from itertools import islice

from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from benchmarks.page import Options, Page, measured_here
from benchmarks.timing import alternate
from moesaic.data.batches import encode_all
from moesaic.data.rows import Example, read_examples
from moesaic.tokenizer import Tokenizer

ROWS, ROUNDS, LENGTH = 20_000, 9, 256


def page(options: Options) -> Page:
    """Rates in rows a second, after every id was compared."""
    count, rounds = (200, 1) if options.quick else (ROWS, ROUNDS)
    folder = options.shared / "models" / "smollm2-135m"
    ours, theirs = Tokenizer.load(folder, eos=2), AutoTokenizer.from_pretrained(folder)
    library = Library.from_file(str(folder / "tokenizer.json"))
    splits = (
        read_examples(options.shared / "data" / "sgd_dialogues" / f"{split}.jsonl") for split in ("train", "test")
    )
    rows = list(islice((example for split in splits for example in split), count))
    last = [one for one, after in zip(rows, [*rows[1:], None], strict=True) if not after or one.group != after.group]
    lines = [
        "Over SmolLM2's tokenizer and template, all ids equal. `tokenizers` gets texts that transformers rendered",
        f"before; moesaic renders, too. Median of {rounds} rounds in turns.",
        "",
        "| sgd_dialogues | tokenizers a second | moesaic a second | moesaic / tokenizers |",
        "|---|---|---|---|",
    ]
    for name, some in {f"{len(rows):,} answers": rows, f"{len(last):,} conversations, each once": last}.items():
        theirs_take, ours_take = compared(some, ours, library, [rendered(theirs, row) for row in some], rounds)
        rates = f"{len(some) / theirs_take:,.0f} | {len(some) / ours_take:,.0f}"
        lines.append(f"| {name} | {rates} | {theirs_take / ours_take:.2f} |")
    return measured_here("\n".join(lines) + "\n")


def compared(
    rows: list[Example], ours: Tokenizer, library: Library, texts: list[str], rounds: int
) -> tuple[float, float]:
    """Seconds of the library and of ours for all rows."""
    whole, _ = encode_all(rows, ours, 1 << 20, 1)
    found = library.encode_batch(texts, add_special_tokens=False)
    # The template ends an answer by a token and a line break, which no model writes.
    assert [row.ids for row in whole] == [one.ids[: len(row.ids)] for row, one in zip(whole, found, strict=True)]
    calls = {
        "theirs": lambda: [one.ids for one in library.encode_batch(texts, add_special_tokens=False)],
        "ours": lambda: encode_all(rows, ours, LENGTH, 1),
    }
    seconds = alternate(calls, rounds, inner=1)
    return seconds["theirs"], seconds["ours"]


def rendered(tokenizer: AutoTokenizer, row: Example) -> str:
    """The text of a row as transformers writes it."""
    messages = [message._asdict() for message in row.messages]
    text: str = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": row.response}], tokenize=False
    )
    return text
