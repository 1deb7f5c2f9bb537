"""A run directory and the address of a run reach another process, which opens an equal run there."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_kinds import fill, recipe_in
from small_runs import bench_of, opened

from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Silent
from moesaic.tasks import Address, Run, open_run

pytestmark = pytest.mark.slow  # starts processes


def returned(value: Any, report: Report) -> Any:
    """Send a value back from the process that it was sent to."""
    return value


def facts_of(run: Run) -> dict[str, Any]:
    """Everything by which two runs are equal: their folders, texts, models, and the keys of their parts."""
    parts = [part for stage in ("experts", "router") for part in bench_of(run).parts[stage]]
    return {
        "dir": run.dir,
        "found": run.models.found,
        "base": run.models.base.fingerprint,
        "domains": run.materials.domains,
        "rows": run.task.test_rows,
        "parts": {part.name: (part.at, part.needs(), part.key) for part in parts},
    }


def opened_elsewhere(address: Address, report: Report) -> dict[str, Any]:
    return facts_of(open_run(address))


def test_a_directory_and_an_address_are_the_same_in_another_process_and_open_an_equal_run(tmp_path: Path):
    recipe = recipe_in(fill(tmp_path), "ffn")
    run = opened(recipe, tmp_path / "run")
    run.models.locate_all()
    strict = RunDir(recipe, tmp_path / "run", strict=True)
    assert run.address.found, "where the base lies is looked up once"
    with Jobs(2, Silent()) as jobs:
        found = jobs.run(
            {
                "dir": partial(returned, strict),
                "address": partial(returned, run.address),
                "run": partial(opened_elsewhere, run.address),
            }
        )
    assert found["dir"] == strict and found["dir"] != run.dir
    assert found["address"] == run.address
    assert found["run"] == facts_of(run)
    written = [path.name for path in (tmp_path / "run").iterdir()]
    assert written == ["rows"], "opening a run and asking for its rows writes nothing else"
