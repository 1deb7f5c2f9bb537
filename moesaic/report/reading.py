"""The files of a run as plain values: evaluation, data, recipe and training logs.

Knows nothing about pages. Only the evaluation is required; for any other missing file it gives the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecodeError
from os import PathLike
from pathlib import Path
from typing import Any

from moesaic.errors import DataError, MoesaicError, WeightsError, clipped
from moesaic.evaluate.units import read_evaluation as sealed
from moesaic.files import read_json, read_jsonl
from moesaic.files.fields import faults

EVALUATION, DATA, RECIPE, METRICS = "evaluation.json", "data.json", "recipe.yaml", "metrics"
LACKING = {
    DATA: "There is no data.json in this run.",
    RECIPE: "There is no recipe.yaml in this run.",
    METRICS: "There are no training logs in this run: it has no folder metrics.",
}
HINT = "moesaic evaluate RECIPE makes it"
ANEW = f"remove it; {HINT} anew"

COUNTS = {
    "files?": {str: {"read": int, "used": int, "skipped?": {str: int}, "ignored?": {str: int}}},
    **{"rows?": {str: int}, "dropped?": {str: {str: int}}},
    "facts?": {
        str: {
            **{"labels?": {str: {str: int}}, "labels_alike?": [[str]]},
            **{"texts_with_two_labels?": int, "prompts_in_train_and_test?": int},
        }
    },
}
"""The numbers of rows in data.json, and the facts about them."""

Rows = list[dict[str, Any]]
Logs = dict[str, dict[str, Rows]]
"""Part, as in `experts/math` -> learning rate, as in the file name -> the steps."""


@dataclass(frozen=True)
class Run:
    """The files of a run; `missing`: for each file that is None or empty, the reason."""

    folder: Path
    evaluation: dict[str, Any]
    data: dict[str, Any] | None
    recipe: str | None
    logs: Logs
    missing: dict[str, str]


def read_run(path: str | PathLike[str]) -> Run:
    """Read a run directory; raises WeightsError without a sound evaluation.json, with the command that makes one."""
    folder, missing = Path(path), dict[str, str]()

    def optional(name: str, read: Callable[[Path], Any]) -> Any:
        if not (folder / name).exists():
            missing[name] = LACKING[name]
            return None
        try:
            return read(folder / name)
        except (MoesaicError, OSError, UnicodeError) as error:
            missing[name] = f"{name} cannot be read: {told(error, folder)}."
            return None

    return Run(
        folder,
        read_evaluation(folder),
        optional(DATA, read_data),
        optional(RECIPE, lambda at: at.read_text(encoding="utf-8")),
        optional(METRICS, read_logs) or {},
        missing,
    )


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read evaluation.json and check the keys that every page needs; errors give the line."""
    at = folder / EVALUATION
    if not folder.is_dir():
        raise WeightsError("there is no such run directory", path=folder, hint="moesaic run RECIPE makes one")
    if not at.is_file():
        raise WeightsError("this run has not been evaluated", path=at, hint=HINT)
    try:
        found = sealed(at)
    except WeightsError as error:
        cause = error.__cause__
        error.hint = ANEW
        error.at(path=at, line=cause.lineno if isinstance(cause, JSONDecodeError) else None)
        raise
    for key in ("verdict", "controls"):
        if not (isinstance(found.get(key), dict) and found[key]):
            got = clipped(found[key]) if key in found else "nothing"
            raise WeightsError("wrong value", path=at, field=key, expected="an object", got=got, hint=ANEW)
    return found


def read_data(at: Path) -> dict[str, Any]:
    """Read data.json and check that its sections are mappings, or mappings of mappings."""
    found = read_json(at)
    nested_too = ("files", "dropped", "duplicates", "facts")
    for key, nested in {**dict.fromkeys(nested_too, True), "rows": False, "provenance": False}.items():
        value = found.get(key, {})
        if not isinstance(value, dict) or (nested and not all(isinstance(part, dict) for part in value.values())):
            raise DataError("wrong value", path=at, field=key, got=clipped(value))
    for field, expected, got in faults(found, COUNTS):
        raise DataError("wrong value", path=at, field=field, expected=expected, got=clipped(got))
    return found


def read_logs(folder: Path) -> Logs:
    """Read all training logs, `metrics/<part>/lr-<rate>.jsonl`, the rates of each part from low to high."""
    logs: Logs = {}
    for at in sorted(folder.rglob("lr-*.jsonl")):
        place = at.parent.relative_to(folder).as_posix()
        logs.setdefault(place, {})[at.stem.removeprefix("lr-")] = [
            checked(row, at, line) for line, row in read_jsonl(at)
        ]
    return {place: dict(sorted(rates.items(), key=lambda one: _number(one[0]))) for place, rates in logs.items()}


def checked(row: dict[str, Any], at: Path, line: int) -> dict[str, Any]:
    for key, absent in {"step": None, "loss": 0, "validation": 0, "score": 0}.items():
        if not isinstance(row.get(key, absent), int | float):
            raise DataError("not a number", path=at, line=line, field=key, got=clipped(row.get(key)))
    return row


def told(error: Exception, folder: Path) -> str:
    if not isinstance(error, MoesaicError):
        return type(error).__name__
    at = Path(error.path) if error.path else None
    where = at.relative_to(folder).as_posix() if at and at.is_relative_to(folder) else ""
    where += f":{error.line}" if where and error.line else ""
    return ": ".join(part for part in (where, error.field, error.what) if part)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")
