"""The texts of a run: every domain in its splits, text that no expert is trained for, and the rows that were left out.

Knows nothing about tokens or models.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.data.rejects import Rejects
from moesaic.data.rows import Example
from moesaic.data.splits import Domain, load_domain, load_source, load_unseen
from moesaic.errors import DataError
from moesaic.files import digest, disk
from moesaic.runs.directory import RunDir
from moesaic.sections.sources import Source


class Materials:
    """The texts that a recipe names, each file read once. `refuse` raises DataError for a row that cannot be used."""

    def __init__(self, run: RunDir, refuse: Callable[[list[Example]], None]):
        self.recipe = run.recipe
        most = run.recipe.max_bad if run.recipe.bad_rows == "skip" else None
        self.rejects = Rejects(most, run.rejects_at, refuse)

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
        read = {
            name: load_domain(name, expert.data, self.resolve, self.rejects)
            for name, expert in self.recipe.experts.items()
            if expert.data
        }
        judged = {example.group for domain in read.values() for example in domain.test}
        return {name: domain.without(judged) for name, domain in read.items()}

    @cached_property
    def unseen(self) -> list[Example]:
        """Text of domains that no expert is trained for."""
        return load_unseen(self.recipe.evaluate.unseen, self.resolve, self.rejects)

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

    def texts(self, sources: Iterable[Source]) -> list[Example]:
        """Text that belongs to no domain."""
        return load_source(sources, self.resolve, self.rejects)

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
