"""Pages of a run directory: one self-contained HTML file without scripts and without links to other files.

Knows nothing about models: numbers come from evaluation.json, and its texts are shown as text, not as HTML.
"""

from os import PathLike
from pathlib import Path
from typing import Any

from markupsafe import Markup

from moesaic.errors import MoesaicError, WeightsError
from moesaic.evaluate.texts import DEFINITIONS
from moesaic.evaluate.units import label, unit_of
from moesaic.evaluate.wording import spoken
from moesaic.files import write_bytes
from moesaic.report import charts
from moesaic.report.comparison import Side, judged_alike, merged, recipe_differences, shared_contenders, shared_unit
from moesaic.report.figures import CUT, Figures, harmless, shown
from moesaic.report.reading import ANEW, EVALUATION, Run, read_run
from moesaic.report.sections import (
    STRENGTHS,
    WORDS,
    contenders,
    counted,
    domains_of,
    experts_of,
    heat,
    labels_of,
    merged_shares,
    samples,
    text_rows,
)
from moesaic.report.tracing import Told, told_of
from moesaic.report.training import grids, panels

FOLDER, PAGE = "report", "index.html"


def write_report(
    run: str | PathLike[str], to: str | PathLike[str] | None = None, trace: str | PathLike[str] | None = None
) -> Path:
    """Write the page of a run and return its path: `to`, by default `report/index.html` in the run directory.

    `trace`: a file of routing decisions, as `generate --trace` writes it, for one more section.
    """
    found = read_run(run)
    path = Path(to) if to else found.folder / FOLDER / PAGE
    write_bytes(path, report(found, None if trace is None else told_of(Path(trace))).encode())
    return path


def compare_reports(a: str | PathLike[str], b: str | PathLike[str], to: str | PathLike[str] | None = None) -> Path:
    """Write a page that compares run `b` with `a`, and return its path: `to`, by default a file in a's `report`."""
    one, other = read_run(a), read_run(b)
    path = Path(to) if to else one.folder / FOLDER / f"vs-{other.folder.resolve().name}.html"
    write_bytes(path, comparison(one, other).encode())
    return path


def report(run: Run, trace: Told | None = None) -> str:
    """Render the page of one run."""
    return filled_in(
        "report.html",
        run.folder / EVALUATION,
        evaluation=run.evaluation,
        router=run.evaluation.get("router", {}),
        unit=unit_of(run.evaluation),
        figure=Figures(run.evaluation),
        label=label,
        of_data=Figures(run.data, "data.json"),
        run=run,
        trace=trace,
        contenders=contenders,
        counted=counted,
        words=WORDS,
        domains_of=domains_of,
        experts_of=experts_of,
        heat=heat,
        grids=grids,
        merged_shares=merged_shares,
        panels=panels,
        samples=samples,
        strengths=STRENGTHS,
        cut=CUT,
        spoken=spoken,
        text_rows=text_rows,
        labels_of=labels_of,
        definitions=DEFINITIONS,
        charts=charts,
    )


def comparison(a: Run, b: Run) -> str:
    """Render the page of two runs."""
    return filled_in(
        "comparison.html",
        f"{a.folder / EVALUATION} or {b.folder / EVALUATION}",
        a=Side(a, "a"),
        b=Side(b, "b"),
        label=label,
        alike=judged_alike(a, b),
        counted=counted,
        spoken=spoken,
        shared_contenders=shared_contenders,
        unit=shared_unit(a, b),
        domains_of=domains_of,
        merged=merged,
        recipe=recipe_differences(a, b),
    )


def filled_in(template: str, source: str | Path, **context: Any) -> str:
    """Fill in a template. Every text passes through `harmless` and is escaped; a missing value is an error."""
    from jinja2 import PackageLoader, StrictUndefined, UndefinedError
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else harmless(value),
        loader=PackageLoader("moesaic.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    try:
        return environment.get_template(template).render(**context)
    except MoesaicError as error:
        error.at(path=source)
        raise
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise WeightsError("not what an evaluation holds", path=source, got=got, hint=ANEW) from error
