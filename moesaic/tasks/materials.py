"""The texts of a run: every domain in its splits, text that no expert is trained for, and the rows that were left out.

Rows of files are read once and kept in the run directory, under the hash of their content and of all that decides how
they are read. Knows nothing about tokens or models.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.data.rejects import Rejects
from moesaic.data.rows import Example
from moesaic.data.splits import SOURCES, SPLITS, Domain, load_domain, load_source, load_unseen
from moesaic.data.stored_rows import ROWS, RowFile, StoredRows, groups_of, name_of, on_disk, store
from moesaic.errors import DataError
from moesaic.files import digest, disk
from moesaic.files.plain import digest_of_list
from moesaic.runs.directory import RunDir
from moesaic.runs.prepared import Facts, Prepared, unchanged
from moesaic.sections.sources import HUB, Data, Source

ALL = "all"
"""The name of rows that have no splits."""


class Materials:
    """The texts that a recipe names, each file read once.

    `refuse` raises DataError for a row that cannot be used; `refusing`: everything that its decisions depend on.
    """

    def __init__(self, run: RunDir, refuse: Callable[[list[Example]], None], refusing: Callable[[], Any]):
        self.recipe, self.refusing = run.recipe, refusing
        most = run.recipe.max_bad if run.recipe.bad_rows == "skip" else None
        self.rejects = Rejects(most, run.rejects_at, refuse)
        self.prepared = Prepared(run.rows_at)

    def resolve(self, path: str) -> Path:
        """The file of a source; raises DataError with the source's key if there is no such file."""
        at = self.recipe.resolve(path)
        with disk.errors(at):
            if not at.exists():
                field = next((key for key, given in self.recipe.sources.items() if given == path), None)
                hint = "sources are relative to the recipe's folder, or to data_root"
                raise DataError("no such file", field=field, got=path, hint=hint)
        return at

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """The texts of every expert that has data, without training texts that another domain is judged on."""
        read = {name: self._domain(name, expert.data) for name, expert in self.recipe.experts.items() if expert.data}
        judged = {group for domain in read.values() for group in groups_of(domain.test)}
        return {name: self._known(domain.without(judged)) for name, domain in read.items()}

    def _known(self, domain: Domain) -> Domain:
        """The same domain with its digest, where that is known by name."""
        if on_disk(domain.train) is None:
            return domain
        names = ["domain", name_of(domain.train), name_of(domain.validation)]
        return replace(domain, known=self.prepared.value(names, lambda: domain.digest))

    def _domain(self, name: str, data: Data) -> Domain:
        """Read a domain, or find its rows where they are kept; those of demos and of the hub stay in memory."""

        def write(folder: Path) -> Facts:
            with RowFile(folder / ROWS) as shelf:
                read = load_domain(name, data, self.resolve, self.rejects, shelf)
            store(folder, {split: getattr(read, split) for split in SPLITS})
            return {"dropped": read.dropped, "labels": read.labels, "read": read.read}

        kept = self._kept(SOURCES[type(data)](data), data.model_dump(mode="json"), write)
        if kept is None:
            return load_domain(name, data, self.resolve, self.rejects)
        folder, facts = kept
        train, validation, test = (StoredRows.open(folder, split) for split in SPLITS)
        return Domain(name, train, validation, test, facts["dropped"], tuple(facts["labels"]), facts["read"])

    def _kept(
        self, sources: Sequence[Source], settings: Any, write: Callable[[Path], Facts]
    ) -> tuple[Path, Facts] | None:
        """The folder in which the rows of sources are kept, and its facts; None where not all of them are files."""
        paths = [self.resolve(source.path) for source in sources if not source.path.startswith(HUB)]
        if not sources or len(paths) < len(sources) or not all(path.is_file() for path in paths):
            return None
        hashes = {path: self.prepared.hash_of(path) for path in paths}

        def read(folder: Path) -> Facts:
            found = write(folder)
            unchanged(hashes, self.prepared.hash_of)
            return {**found, "files": self.rejects.told(paths)}

        named = {str(path): found for path, found in hashes.items()}
        folder, facts = self.prepared.folder(
            digest(["rows", settings, named, self.recipe.bad_rows, self.refusing()]), read
        )
        self.rejects.recall(facts["files"])
        return folder, facts

    @cached_property
    def unseen(self) -> Sequence[Example]:
        """Text of domains that no expert is trained for."""
        given = self.recipe.evaluate.unseen
        sources = SOURCES[type(given)](given)
        return self.texts(sources) if sources else load_unseen(given, self.resolve, self.rejects)

    @property
    def judged_by(self) -> dict[str, str]:
        """Hashes of all that an evaluation reads of rows: the test rows, and the labels of training rows by number.

        Beside them stands the label that the recipe chooses for f1, by data set.
        """
        found = {name: digest([row.told for row in domain.test]) for name, domain in self.domains.items()}
        found |= {
            f"{name}/labels": digest([domain.labels, Counter(row.response for row in domain.train)])
            for name, domain in self.domains.items()
            if domain.labels
        }
        given = {name: expert.data for name, expert in self.recipe.experts.items()}
        found |= {f"{name}/positive": data.positive for name, data in given.items() if data and data.positive}
        return {**found, "unseen": digest([row.told for row in self.unseen])}

    def texts(self, sources: Iterable[Source]) -> Sequence[Example]:
        """Text that belongs to no domain."""
        some = [*sources]

        def write(folder: Path) -> Facts:
            with RowFile(folder / ROWS) as shelf:
                read = load_source(some, self.resolve, self.rejects, shelf)
            store(folder, {ALL: read})
            return {}

        kept = self._kept(some, [source.model_dump(mode="json") for source in some], write)
        return StoredRows.open(kept[0], ALL) if kept else load_source(some, self.resolve, self.rejects)

    def digest_of(self, lists: Sequence[Sequence[Example]]) -> str:
        """The digest of all that anything made from some lists of examples depends on, as one list."""

        def compute() -> str:
            return digest_of_list(example.told for some in lists for example in some)

        if any(on_disk(some) is None for some in lists):
            return compute()
        return self.prepared.value(["examples", *map(name_of, lists)], compute)

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Read every file that the recipe names and count its rows: read, used, and skipped by reason."""
        base, experts = self.recipe.base, self.recipe.experts.values()
        apart = [expert.examples for expert in experts if expert.examples and not expert.data]
        if base.pretrain and base.pretrain.sources:
            apart.append(base.pretrain.sources)
        _ = self.domains, self.unseen
        for sources in apart:
            self.texts(sources)
        return self.rejects.files()
