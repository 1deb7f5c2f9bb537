"""Text from files and from streams of the hub, row by row, into a folder of token shards.

Knows nothing about models: the tokenizer is trained on the text, or read from a folder.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from moesaic.data.containers import numbered, rows_of
from moesaic.data.labelled import hub_rows
from moesaic.data.rows import Example, examples_of, text_of
from moesaic.data.token_shards import write_shards
from moesaic.errors import DataError, RecipeError
from moesaic.files import write_new
from moesaic.sections.sources import HUB
from moesaic.tokenizer import Tokenizer

SAMPLE = 100_000
"""The first texts, on which a tokenizer is trained."""


def tokenize(
    sources: Sequence[str],
    out: Path,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    unseen: float = 0.01,
    limit: int | None = None,
) -> dict[str, Any]:
    """Write the texts of sources as token shards into the new folder `out`, and return what it holds.

    A source is a file of rows, or `hub:OWNER/NAME/CONFIG/SPLIT`, which is streamed. `vocab_size`: train a tokenizer of
    this size on the first texts; `tokenizer`: a folder with one, in its place. `unseen`: see `write_shards`. `limit`:
    read so many rows of each source.
    """
    if (vocab_size is None) == (tokenizer is None):
        raise RecipeError("a tokenizer is missing", expected="either a vocab_size to train one, or the folder of one")
    if not 0 <= unseen < 1:
        raise RecipeError("not a share", field="unseen", expected="at least 0 and less than 1", got=unseen)

    def texts() -> Iterator[Example]:
        return chain.from_iterable(islice(read(source), limit) for source in sources)

    if tokenizer is None:
        words = Tokenizer.train((text_of(one) for one in islice(texts(), SAMPLE)), vocab_size or 0)
    else:
        words = Tokenizer.load(tokenizer)
    found = dict[str, Any]()
    write_new(out, lambda folder: found.update(write_shards(folder, texts(), words, unseen)), 0, "the shards")
    return found


def read(source: str) -> Iterator[Example]:
    """The texts of a source, one for each row: of a conversation its last turn, whose prompt holds the earlier ones."""
    path = Path(source)
    for given in numbered(hub_rows(path, streaming=True)) if source.startswith(HUB) else rows_of(path):
        try:
            if given.defect:
                raise given.defect
            yield examples_of(given.row)[-1]
        except DataError as error:
            raise error.at(path=path, line=given.number) from None
