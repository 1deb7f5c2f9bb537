"""The corpus of a study: its texts as token shards, and unseen texts to choose rates by and to report on.

Knows nothing about arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.data.rows import Example, text_of
from moesaic.data.splits import load_source
from moesaic.data.token_shards import Shards, is_unseen, write_shards
from moesaic.errors import DataError
from moesaic.files import digest, disk, write_manifest
from moesaic.lab.directory import StudyDir
from moesaic.lab.documents import Unseen
from moesaic.lab.study import Study
from moesaic.runs.jobs import Report
from moesaic.runs.part import Part
from moesaic.tokenizer import Tokenizer

KIND, SHARDS = "corpus", "shards"


@dataclass(frozen=True)
class Corpus:
    """Shards to train on, and unseen documents by their use."""

    shards: Shards
    choosing: Unseen
    judging: Unseen


def open_corpus(folder: Path, length: int, rows: int) -> Corpus:
    """Open a published corpus: of its unseen texts, every other one chooses, the others judge; at most `rows` each."""
    shards = Shards.open(folder / SHARDS)
    unseen = [shards.unseen.ids(index).tolist() for index in range(min(2 * rows, len(shards.unseen.lengths)))]
    choosing, judging = (Unseen.of(unseen[first::2], shards.tokenizer, length) for first in (0, 1))
    return Corpus(shards, choosing, judging)


class CorpusPart(Part):
    """The texts of a study as tokens, with a tokenizer that was trained on those that are not unseen."""

    run: StudyDir
    name = stage = "corpus"

    def __init__(self, run: StudyDir):
        super().__init__(run, run.corpus_at)

    @cached_property
    def examples(self) -> Sequence[Example]:
        return load_source(self.run.study.data, lambda path: file_of(self.run.study, path))

    def inputs(self) -> dict[str, Any]:
        study = self.run.study
        texts = digest([example.told for example in self.examples])
        return {"texts": texts, "unseen": study.unseen, "vocab_size": study.vocab_size}

    def make(self, report: Report) -> None:
        study = self.run.study
        seen = (text_of(example) for example in self.examples if not is_unseen(example, study.unseen))
        tokenizer = Tokenizer.train(seen, study.vocab_size)

        def write(folder: Path) -> None:
            disk.make(folder / SHARDS)
            facts = write_shards(folder / SHARDS, self.examples, tokenizer, study.unseen)
            write_manifest(folder, {"kind": KIND, "stage_key": self.key, **facts})

        self.run.publish_version(self.at, write, sum(len(text_of(example)) for example in self.examples))


def file_of(study: Study, path: str) -> Path:
    """The file of a source; DataError with the source's key without one."""
    at = study.resolve(path)
    with disk.errors(at):
        if not at.exists():
            number = next(index for index, source in enumerate(study.data) if source.path == path)
            field = f"data[{number}]" if len(study.data) > 1 else "data"
            hint = "sources are relative to the study's folder, or to data_root"
            raise DataError("no such file", field=field, got=path, hint=hint)
    return at
